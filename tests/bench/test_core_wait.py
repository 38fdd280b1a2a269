"""The times of a process are those of its threads and of all below it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.core_wait import CoreTimes, core_times


def thread(proc: Path, pid: int, tid: int, ran_ns: int, waited_ns: int, children: str = "") -> None:
    folder = proc / str(pid) / "task" / str(tid)
    folder.mkdir(parents=True)
    (folder / "schedstat").write_text(f"{ran_ns} {waited_ns} 7\n")
    (folder / "children").write_text(children)


def test_threads_and_children_add_up(tmp_path: Path) -> None:
    thread(tmp_path, 1, 1, 1_000_000_000, 0, children="2 ")
    thread(tmp_path, 1, 5, 500_000_000, 250_000_000)
    thread(tmp_path, 2, 2, 2_000_000_000, 750_000_000)
    thread(tmp_path, 9, 9, 9_000_000_000, 0)
    times = core_times(1, tmp_path)
    assert times == CoreTimes(pytest.approx(3.5), pytest.approx(1.0))
    assert times.waited_share == pytest.approx(1.0 / 4.5)


def test_what_cannot_be_read_has_not_waited(tmp_path: Path) -> None:
    assert core_times(1, tmp_path) == CoreTimes(0.0, 0.0)
    assert core_times(1, tmp_path).waited_share == 0.0


def test_a_difference_is_never_negative() -> None:
    assert CoreTimes(1.0, 2.0).since(CoreTimes(0.5, 3.0)) == CoreTimes(0.5, 0.0)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_this_process_has_run() -> None:
    assert core_times(os.getpid()).ran_s > 0
