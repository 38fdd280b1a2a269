"""Work is told from idleness, and nobody waits for calm for ever."""

from __future__ import annotations

import os

import pytest

from bench.router import calm


def test_idle_and_disk_waits_are_not_work() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    line = f"cpu {3 * ticks} {1 * ticks} {2 * ticks} 1000 500 {1 * ticks} {1 * ticks} {1 * ticks} 7 7\ncpu0 1 2 3\n"
    assert calm.busy_s(line) == pytest.approx(9.0)


@pytest.mark.parametrize(("cores", "is_calm"), [(0.0, True), (0.5, False)])
def test_calm_is_all_but_idle(monkeypatch: pytest.MonkeyPatch, cores: float, is_calm: bool) -> None:
    """On a clock of its own."""
    now = [0.0]
    monkeypatch.setattr(calm.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(calm.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(calm, "machine_busy_s", lambda: cores * now[0])
    assert calm.wait_until_calm(10.0) is is_calm
    assert now[0] == (0.5 if is_calm else 10.0)
