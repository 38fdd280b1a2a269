from __future__ import annotations

from pathlib import Path

import pytest

from bench.kv.compare import Comparison, Plan
from bench.kv.systems import MEMCPY, PLAIN_GRPC, TCP2, systems, whole


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


def test_paces_are_taken_beside_one_hand_over_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    only = [system for system in systems(("grpc",), ()) if system.name == whole("grpc")]  # others have no pace
    monkeypatch.setattr("bench.kv.compare.systems", lambda transports, peers: iter(only))
    plan = Plan(sizes=(32,), rounds=1, transports=("grpc",), peers=(), paces=((32, 1.0), (48, 1.0)), repeats=1)
    comparison = Comparison(plan)
    taken = [*comparison.sizes(), *comparison.overlap()]
    handed_over = [(each.tokens, each.layer_ms) for each in taken]
    assert handed_over == [(32, 0.0), (48, 0.0), (32, 1.0), (48, 1.0)]
    assert comparison.notes == []
