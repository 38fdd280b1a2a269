"""Times of what a controller does again and again, and when the router has each change of a worker.

Owns the figures. Times are wall time, and CPU time of the thread: a busy machine lengthens the one and not the other.
Must not know controllers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Final, ParamSpec, TypeVar

from core.types import Membership

_MOST: Final = 100_000

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass
class Stopwatch:
    """Times of one thing, in seconds."""

    wall_s: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST))
    cpu_s: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST))

    def on(self, work: Callable[_P, _T]) -> Callable[_P, _T]:
        """Time each call of a function."""

        def timed(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            began_s, cpu_s = time.monotonic(), time.thread_time()
            try:
                return work(*args, **kwargs)
            finally:
                self._add(began_s, cpu_s)

        return timed

    def on_awaited(self, work: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
        """Time each call of a coroutine function; CPU time is that of its thread, whatever else ran meanwhile."""

        async def timed(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            began_s, cpu_s = time.monotonic(), time.thread_time()
            try:
                return await work(*args, **kwargs)
            finally:
                self._add(began_s, cpu_s)

        return timed

    def forget(self) -> None:
        """Begin anew."""
        self.wall_s.clear()
        self.cpu_s.clear()

    def cells(self) -> list[str]:
        """Write number, median and most of both kinds of time, in ms."""
        if not self.wall_s:
            return ["0", *["-"] * 4]
        times = (median(self.cpu_s), max(self.cpu_s), median(self.wall_s), max(self.wall_s))
        return [str(len(self.wall_s)), *(f"{1e3 * value:.1f}" for value in times)]

    def _add(self, began_s: float, cpu_s: float) -> None:
        self.wall_s.append(time.monotonic() - began_s)
        self.cpu_s.append(time.thread_time() - cpu_s)


@dataclass
class Reach:
    """How long a worker's new role or epoch takes from the controller's word to the router's requests."""

    took_s: list[float] = field(default_factory=list)
    _known: dict[str, str] = field(default_factory=dict)  # as published last: role and epoch
    _awaited: dict[str, tuple[str, float]] = field(default_factory=dict)  # what, and when it was published

    def published(self, membership: Membership) -> None:
        """Take a membership that is published now."""
        now_s = time.monotonic()
        new = {record.worker_id: f"{record.role} {record.epoch}" for record in membership.workers}
        for worker_id, what in new.items():
            if self._known.get(worker_id) != what:
                self._awaited[worker_id] = (what, now_s)
        for worker_id in self._known.keys() - new.keys():
            self._awaited.pop(worker_id, None)
        self._known = new

    def seen(self, at_s: float, workers: dict[str, str | None]) -> None:
        """Take what the router said at `at_s` of workers that are other than before."""
        for worker_id, what in workers.items():
            awaited = self._awaited.get(worker_id)
            if awaited is not None and awaited[0] == what:
                del self._awaited[worker_id]
                self.took_s.append(max(0.0, at_s - awaited[1]))

    @property
    def num_awaited(self) -> int:
        """Changes that the router does not have yet."""
        return len(self._awaited)
