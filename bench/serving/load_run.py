"""One run of load: sends requests as a load shape says, and gathers what came of each.

Owns the pacing and who leaves early. Callbacks only, no task for each request: thousands start each second. Must not
know metrics.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from bench.serving.client_health import ClientHealth, HealthWatch
from bench.serving.connection import ConnectionPool
from bench.serving.load_shape import LoadShape
from bench.serving.timing import StreamedAnswer, Timing
from sim.workload import Floats

RAMP_CHECK_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Prepared:
    """One request, ready to send."""

    data: bytes
    prompt_tokens: int  # as asked
    slo_class: str = ""


class Requests(Protocol):
    """Where requests come from."""

    def __len__(self) -> int:
        """Count them."""

    def request(self, index: int) -> Prepared:
        """Make one; the same for the same index."""

    @property
    def arrived_s(self) -> Floats | None:
        """Their own times, from 0; None: they have none."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run treats its requests."""

    timeout_s: float = 600.0  # of one request
    cancel_share: float = 0.0  # of clients that leave in mid-stream
    seed: int = 0
    keeps_text: bool = False


@dataclass(slots=True)
class Run:
    """What came of a run: one timing for each request that was sent, in the order in which they were due."""

    timings: list[Timing]
    duration_s: float  # from the first that was due until the last had ended
    health: ClientHealth
    began_s: float = 0.0


@dataclass(slots=True)
class Live:
    """How a run goes, for who watches it."""

    total: int
    began_s: float
    sent: int = 0
    ended: list[Timing] = field(default_factory=list)

    @property
    def in_flight(self) -> int:
        """Requests without an end."""
        return self.sent - len(self.ended)


class LoadRun:
    """Sends the first `count` requests of a source, once."""

    def __init__(
        self,
        pool: ConnectionPool,
        requests: Requests,
        shape: LoadShape,
        options: RunOptions,
        is_hopeless: Callable[[Live], bool] | None = None,
    ) -> None:
        """Ask `is_hopeless` at the end of each request; once it says so, nothing is sent and what runs is cut off."""
        self._is_hopeless = is_hopeless
        self._pool = pool
        self._requests = requests
        self._shape = shape
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._leave_after = _leavers(options, len(requests))
        self._due_s: Floats = np.zeros(0)
        self._next = 0
        self._waiting: deque[int] = deque()  # due, and held back by the bound of requests in flight
        self._timings: list[Timing] = []
        self._all_ended: asyncio.Future[None] = self._loop.create_future()
        self._first = 0
        self.live = Live(0, 0.0)
        self.is_cut = False
        self.is_interrupted = False
        self._kept: list[Timing] = []  # of an interrupted run: all and only what had ended by then

    async def run(self, first: int = 0, count: int | None = None) -> Run:
        """Send requests `first` to `first + count`, and wait for the end of each; every wait is bounded."""
        count = len(self._requests) - first if count is None else count
        own_s = self._requests.arrived_s
        own_s = None if own_s is None else own_s[first : first + count]
        self._due_s = self._shape.arrivals(count, self._options.seed, own_s)
        self._first = first
        watch = HealthWatch()
        with _quiet_memory():
            watch.start()
            self.live = Live(len(self._due_s), time.perf_counter())
            self._send_due()
            try:
                await self._all_ended
            except asyncio.CancelledError:
                self._waiting.clear()
                self._next = len(self._due_s)  # what is due later must not open connections in a loop that closes
                raise
            duration_s = time.perf_counter() - self.live.began_s
        timings = self._kept if self.is_interrupted else self._timings
        late_s = [t.sent_s - t.due_s for t in timings] if self._shape.is_open else []
        return Run(timings, duration_s, await watch.stop(late_s), self.live.began_s)

    def interrupt(self) -> None:
        """Send nothing more and cut off what runs: the run ends now, with the requests that have ended."""
        if not self.is_interrupted:
            self.is_interrupted = True
            self._kept = sorted(self.live.ended, key=lambda timing: timing.due_s)
            self._cut()

    def _send_due(self) -> None:
        """Send what is due, and come back when the next is."""
        now_s = time.perf_counter() - self.live.began_s
        due_s, total = self._due_s, len(self._due_s)
        while self._next < total and due_s[self._next] <= now_s:
            self._waiting.append(self._next)
            self._next += 1
        self._send_waiting(now_s)
        if self._next < total:
            self._loop.call_later(max(0.0, due_s[self._next] - now_s), self._send_due)
        elif self._waiting and now_s < self._shape.ramp_up_s:
            self._loop.call_later(RAMP_CHECK_S, self._send_due)
        elif not total:
            self._all_ended.set_result(None)

    def _send_waiting(self, now_s: float) -> None:
        limit = self._shape.limit_at(now_s)
        while self._waiting and (limit is None or self.live.in_flight < limit):
            self._send(self._waiting.popleft())

    def _send(self, number: int) -> None:
        at = self._first + number
        prepared = self._requests.request(at)
        now_s = time.perf_counter()
        timing = Timing(
            now_s,
            due_s=self.live.began_s + float(self._due_s[number]),
            prompt_tokens=prepared.prompt_tokens,
            slo_class=prepared.slo_class,
        )
        self._timings.append(timing)
        self.live.sent += 1
        answer = StreamedAnswer(
            timing, self._ended, leave_after=self._leave_after.get(at), keeps_text=self._options.keeps_text
        )
        self._pool.send(prepared.data, answer, self._options.timeout_s)

    def _ended(self, timing: Timing) -> None:
        self.live.ended.append(timing)
        if not self.is_cut and self._is_hopeless is not None and self._is_hopeless(self.live):
            self._cut()
        if self._waiting:
            now_s = time.perf_counter() - self.live.began_s
            if self._shape.seconds is not None and now_s >= self._shape.seconds:
                self._waiting.clear()  # a closed loop's time is over
            # In the next pass: an answer may end while the pool is still taking the request.
            self._loop.call_soon(self._send_waiting, now_s)
        if not self._waiting and self._next >= len(self._due_s) and not self.live.in_flight:
            self._end()

    def _cut(self) -> None:
        self.is_cut = True
        self._waiting.clear()
        self._next = len(self._due_s)
        if self.live.in_flight:
            self._loop.call_soon(self._pool.abort_busy)
        else:
            self._end()

    def _end(self) -> None:
        if not self._all_ended.done():
            self._all_ended.set_result(None)


def _leavers(options: RunOptions, count: int) -> dict[int, int]:
    """Choose who leaves, and after how many events; few, for a stream may be short."""
    if not options.cancel_share:
        return {}
    rng = np.random.default_rng([options.seed, 0xCA4C])
    leaves = rng.random(count) < options.cancel_share
    after = rng.integers(1, 9, count)
    return {int(at): int(after[at]) for at in np.flatnonzero(leaves)}


@contextmanager
def _quiet_memory() -> Iterator[None]:
    """Keep the collector from stopping the client: what a run makes dies by reference count, or is kept."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
