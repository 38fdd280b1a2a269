from __future__ import annotations

from pathlib import Path

import pytest

from bench.kv.compare import Comparison, Plan
from bench.kv.systems import MEMCPY, PLAIN_GRPC, TCP2


def test_systems_take_turns_and_a_peer_that_cannot_be_had_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.kv.systems.is_installed", lambda: False)  # iperf3, on some machines
    folder = tmp_path / "file"
    folder.write_text("no environment can be made here")
    plan = Plan(sizes=(16,), rounds=2, transports=(), peers=("grpc-plain", "nixl"), peers_folder=folder, repeats=1)
    comparison = Comparison(plan)
    taken = list(comparison.sizes())
    assert [(each.round, each.system) for each in taken] == [
        (0, MEMCPY),
        (0, TCP2),
        (0, PLAIN_GRPC),
        (1, TCP2),
        (1, PLAIN_GRPC),
        (1, MEMCPY),
    ]
    assert len(comparison.notes) == 1
    assert comparison.notes[0].startswith("Left out: NIXL")
