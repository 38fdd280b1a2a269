from __future__ import annotations

from pathlib import Path

import pytest

from bench.kv import iperf3
from tests.support.kv_bench import move_once

STAND_IN = """#!/bin/sh
case "$1" in
  --server) echo "Server listening on $4" ;;
  --client) echo '{"end": {"sum_received": {"bits_per_second": 1000000000.0}}}' ;;
esac
"""


def test_its_own_rate_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / iperf3.PROGRAM
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert iperf3.is_installed()
    client, server, _ = move_once("bench.kv.iperf3", {})
    assert client.began_s is not None
    assert client.ended_s is not None
    assert client.ended_s - client.began_s == pytest.approx(3 * 32 * 65536 * 8 / 1e9)
    assert server.began_s is server.ended_s is None


def test_it_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not iperf3.is_installed()
