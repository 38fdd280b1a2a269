"""A process that is stopped, busy or gone, as the watch of an engine core sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine import core_watch
from engine.core_watch import CoreWatch, with_descendants
from engine.step_state import StepFigures, StepState

WAIT_S = 60.0
SLEEPS = "import sys; sys.stdin.read()"
WORKS = "while True: pass"


@contextmanager
def process(program: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as child:
        try:
            yield child.pid
        finally:
            child.kill()


def watch_of(pid: int, steps: StepState, *, answers: bool = False, limit_s: float = WAIT_S) -> CoreWatch:
    async def ask() -> None:
        if not answers:
            await asyncio.Event().wait()

    return CoreWatch([pid], steps, has_work=lambda: True, ask=ask, step_limit_s=limit_s)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_watch, "LOOK_S", 0.05)
    monkeypatch.setattr(core_watch, "GIVEN_UP_LOOKS", 12)


async def test_a_stopped_core_is_told_of_and_given_up() -> None:
    steps, told = StepState(), list[bool]()
    steps.on_step(lambda: told.append(steps.get().stalled))
    with process(SLEEPS) as pid:
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(WAIT_S):
            assert await watch_of(pid, steps).run() == "the engine core stood still for 0.6 s"
    assert told == [True]


async def test_one_that_goes_on_in_time_is_stalled_no_longer() -> None:
    steps, changed = StepState(), asyncio.Event()
    steps.on_step(changed.set)
    with process(WORKS) as pid:
        os.kill(pid, signal.SIGSTOP)
        watching = asyncio.create_task(watch_of(pid, steps).run())
        async with asyncio.timeout(WAIT_S):
            await changed.wait()
            assert steps.get().stalled
            changed.clear()
            os.kill(pid, signal.SIGCONT)
            await changed.wait()
            assert not steps.get().stalled
        watching.cancel()


async def test_a_core_that_is_busy_is_given_up_when_its_step_takes_too_long() -> None:
    with process(WORKS) as pid:
        async with asyncio.timeout(WAIT_S):
            why = await watch_of(pid, StepState(), limit_s=1.5).run()
    assert why == "the engine core ended no step for 1.5 s (healing.step_limit_s)"


async def test_one_that_answers_or_steps_is_left_alone() -> None:
    steps = StepState()
    with process(SLEEPS) as pid:
        answering = asyncio.create_task(watch_of(pid, StepState(), answers=True).run())
        stepping = asyncio.create_task(watch_of(pid, steps, limit_s=0.5).run())
        for _ in range(30):
            steps.observe(StepFigures(1, 0, 0.0, made_tokens=False), 0.0)
            await asyncio.sleep(core_watch.LOOK_S)
        assert not answering.done()
        assert not stepping.done()
        assert not steps.get().stalled
        answering.cancel()
        stepping.cancel()


def test_processes_below_a_core_belong_to_it() -> None:
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        while len(found := with_descendants([parent.pid])) < 2:
            assert parent.poll() is None
        assert found[0] == parent.pid
        parent.stdin.close()
    assert with_descendants([parent.pid]) == (parent.pid,)
