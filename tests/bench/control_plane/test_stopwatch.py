"""Times are kept apart, and a change counts once the router has just that life and role."""

from __future__ import annotations

import itertools
import time

import pytest

from bench.control_plane.client import changes
from bench.control_plane.stopwatch import Reach, Stopwatch
from core.types import Membership, Role, WorkerRecord


def membership(version: int, *workers: tuple[str, Role, int]) -> Membership:
    return Membership(version, tuple(WorkerRecord(name, role, epoch, "h:1", "n") for name, role, epoch in workers))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(1)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))


def test_a_change_is_there_once_the_router_has_that_role_and_life(clock: None) -> None:
    reach = Reach()
    reach.published(membership(1, ("a", Role.DECODE, 1), ("b", Role.DECODE, 1)))  # at 1
    reach.seen(1.5, {"a": "decode 1", "b": "decode 1"})
    reach.published(membership(2, ("a", Role.PREFILL, 1), ("b", Role.DECODE, 2)))  # at 2
    reach.seen(2.1, {"b": None})
    assert reach.num_awaited == 2
    reach.seen(2.25, {"a": "prefill 1"})
    reach.seen(3.0, {"b": "decode 2"})
    assert reach.took_s == [0.5, 0.5, 0.25, 1.0]
    assert reach.num_awaited == 0


def test_a_worker_that_leaves_before_the_router_has_it_is_awaited_no_more(clock: None) -> None:
    reach = Reach()
    reach.published(membership(1, ("a", Role.DECODE, 1)))
    reach.published(membership(2))
    assert reach.num_awaited == 0


def test_both_kinds_of_time_are_told_in_milliseconds() -> None:
    watch = Stopwatch()
    assert watch.cells() == ["0", "-", "-", "-", "-"]
    assert watch.on(lambda: 5)() == 5
    watch.wall_s[0], watch.cpu_s[0] = 0.020, 0.003
    assert watch.cells() == ["1", "3.0", "3.0", "20.0", "20.0"]
    watch.forget()
    assert watch.cells()[0] == "0"


def test_only_workers_that_are_other_than_before_are_told() -> None:
    known: dict[str, str] = {}
    a = {"worker_id": "a", "role": "decode", "epoch": 1}
    assert changes(known, [a]) == {"a": "decode 1"}
    assert changes(known, [a]) == {}
    assert changes(known, [a | {"epoch": 2}]) == {"a": "decode 2"}
    assert changes(known, []) == {"a": None}
