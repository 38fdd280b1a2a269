"""Torture: a short run is clean, and what it looks for it finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.torture.run import Outcome, Plan, report, torture

PLAN = Plan(handovers=120, at_once=8, seed=3, transport="auto", faults=2.0, deaths=50)


@pytest.fixture
def told() -> list[str]:
    return []


def run(plan: Plan, tmp_path: Path, told: list[str]) -> Outcome:
    return torture(plan, tmp_path, tell=told.append)


@pytest.mark.slow
def test_whatever_breaks_nothing_wrong_is_served_and_nothing_is_left(tmp_path: Path, told: list[str]) -> None:
    outcome = run(PLAN, tmp_path, told)
    assert outcome.problems == ()
    assert outcome.counts["landed"] > 0
    assert outcome.counts["recomputed"] > 0
    assert outcome.counts["killed"] == 2
    assert outcome.faults["cut"] > 0
    assert outcome.by_transport["shm"] > 0
    assert "no wrong byte" in list(report(PLAN, outcome))[-1]


@pytest.mark.slow
def test_bytes_that_nobody_verified_are_found(tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kv_transfer.landing.verify_blocks", lambda header, seed, rows, digest: None)
    # A frame that claims to be of another layer lands there, and the layer it came from is sent twice.
    monkeypatch.setattr("kv_transfer.landing.Landed.check_complete", lambda self, frames_sent: None)
    monkeypatch.setattr("kv_transfer.landing.Landed.incomplete_blocks", lambda self: set())
    outcome = run(PLAN, tmp_path, told)
    assert any("wrong bytes" in problem for problem in outcome.problems)
