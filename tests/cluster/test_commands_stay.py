"""How `up --foreground` ends when another command stops its cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster import commands
from cluster.console import Console
from cluster.interrupts import Interrupts
from cluster.state import ClusterRecord, ProcessIdentity, StateDir


def test_what_another_command_stops_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starter = ProcessIdentity.of(os.getppid())
    assert starter is not None
    state = StateDir(tmp_path)
    record = ClusterRecord("127.0.0.1:1", True, str(tmp_path), None, starter, "demo")
    assert state.claim(record)

    def stopped(of: ClusterRecord) -> str:
        state.update_starter(of, os.getpid())  # as `down` does before it stops the router
        return "the router does not answer"

    monkeypatch.setattr(commands, "WATCH_S", 0.01)
    monkeypatch.setattr(commands, "_what_is_lost", stopped)
    with Interrupts() as interrupts:
        assert commands._stay(state, record, Console(as_json=False), interrupts) == commands.OK
    assert "stopped by another command" in capsys.readouterr().out
