"""Watches the processes of an engine core for a standstill, which no exit and no closed connection tells of.

Owns the looks at them in /proc, the question in between, and what follows: the worker says in its state that it is
stalled, so that routers go on elsewhere; goes back when the core moves again; and gives the engine up in the end. The
rule is engine.standstill's. Must not know vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from engine.standstill import Sight, Standstill, Verdict
from engine.step_state import StepState

_LOG = logging.getLogger(__name__)

LOOK_S: Final = 0.25
STALLED_LOOKS: Final = 4  # a second, as for a worker that says nothing: cluster.wire.BUSY_SILENCE_S
GIVEN_UP_LOOKS: Final = 40  # 10 s: what passes by itself, has passed by then
ASK_LOOKS: Final = 2  # without a step until the core is asked
_RUNNABLE: Final = ("R", "D")  # running or ready to, and waiting for a disk; see proc_pid_stat(5)
_PROC: Final = Path("/proc")
_STAT_UTIME, _STAT_STIME = 11, 12  # fields after the name, see proc_pid_stat(5)


class CoreWatch:
    """Watches one engine core; `run` it as a task."""

    def __init__(
        self,
        pids: Sequence[int],
        steps: StepState,
        *,
        has_work: Callable[[], bool],
        ask: Callable[[], Awaitable[object]],
        step_limit_s: float,
    ) -> None:
        """Prepare. `ask` returns, or fails, when the core has answered; `step_limit_s` bounds a busy core's step."""
        self._pids = pids
        self._steps = steps
        self._has_work = has_work
        self._ask = ask
        self._step_limit_s = step_limit_s
        self._rule = Standstill()
        self._num_answers = 0
        self._seen_steps = 0
        self._question: asyncio.Future[object] | None = None  # not answered yet

    async def run(self) -> str:
        """Return why the engine is to be given up; not before that."""
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                if why := self._act(self._rule.look(self._sight())):
                    return why
        finally:
            if self._question is not None:
                self._question.cancel()

    def _act(self, verdict: Verdict) -> str:
        is_stalled = verdict.num_still >= STALLED_LOOKS
        if is_stalled is not self._steps.get().stalled:
            _LOG.warning("the engine core %s", "stands still" if is_stalled else "goes on")
        self._steps.set_stalled(is_stalled)
        if verdict.num_stepless >= ASK_LOOKS and self._question is None:
            self._question = asyncio.ensure_future(self._ask())
            self._question.add_done_callback(self._take_answer)
        if verdict.num_still >= GIVEN_UP_LOOKS:
            return f"the engine core stood still for {GIVEN_UP_LOOKS * LOOK_S:g} s"
        if verdict.num_stepless * LOOK_S >= self._step_limit_s:
            return f"the engine core ended no step for {self._step_limit_s:g} s (healing.step_limit_s)"
        return ""

    def _take_answer(self, question: asyncio.Future[object]) -> None:
        self._question = None
        self._num_answers += 1
        if not question.cancelled():
            question.exception()  # retrieved: an error is an answer, and a dead core is seen by its end

    def _sight(self) -> Sight:
        num_steps = self._steps.num_steps
        has_stepped, self._seen_steps = num_steps != self._seen_steps, num_steps
        # Processes and threads are many files; there is no need to look when a step has ended.
        pids = () if has_stepped else with_descendants(self._pids)
        return Sight(
            num_steps=num_steps,
            num_answers=self._num_answers,
            cpu_ticks=sum(map(_cpu_ticks, pids)),
            is_runnable=any(map(_is_runnable, pids)),
            has_work=self._has_work(),
        )


def with_descendants(pids: Iterable[int]) -> tuple[int, ...]:
    """List processes and all below them: workers of tensor parallelism, compilers of kernels."""
    found = list(pids)
    for pid in found:
        for task in _tasks(pid):
            found += [int(child) for child in _read(task / "children").split()]
    return tuple(found)


def _cpu_ticks(pid: int) -> int:
    fields = _fields(_PROC / str(pid) / "stat")
    return int(fields[_STAT_UTIME]) + int(fields[_STAT_STIME]) if fields else 0


def _is_runnable(pid: int) -> bool:
    return any(fields[0] in _RUNNABLE for task in _tasks(pid) if (fields := _fields(task / "stat")))


def _tasks(pid: int) -> list[Path]:
    """List the threads of a process; none when it is gone."""
    with contextlib.suppress(OSError):
        return list((_PROC / str(pid) / "task").iterdir())
    return []


def _fields(stat: Path) -> list[str]:
    """Read the fields after the name; none when it is gone."""
    return _read(stat).rpartition(")")[2].split()


def _read(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text()
    return ""
