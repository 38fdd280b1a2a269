"""Whether the client itself was what limited a benchmark.

Owns the watching of the client's own loop and processor time, and the bounds beyond which its figures are not the
server's. Must not know requests.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.core_wait import CoreTimes, core_times

_EVERY_S: Final = 0.05
MAX_CPU_SHARE: Final = 0.9  # of one core: the client has one thread
MAX_LAG_MS: Final = 10.0  # p99; tokens that come meanwhile are noted so much too late
MAX_LATE_MS: Final = 10.0  # p99 of how long after its time a request was sent


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """What the client did to its own measurement."""

    cpu_share: float  # of one core
    waited_share: float  # of the time it wanted to run, in which no core was free
    lag_p99_ms: float  # of its event loop
    late_p99_ms: float  # requests sent after they were due; 0 where they wait for a client by design

    @property
    def problems(self) -> tuple[str, ...]:
        """Say what makes the figures the client's and not the server's; empty: nothing."""
        found = []
        if self.cpu_share > MAX_CPU_SHARE:
            found.append(f"it used {self.cpu_share:.0%} of its core; offer less, or run several clients")
        if self.lag_p99_ms > MAX_LAG_MS:
            why = f"; it waited {self.waited_share:.0%} for a free core" if self.waited_share > 0.05 else ""
            found.append(f"tokens were noted up to {self.lag_p99_ms:.0f} ms late (p99){why}")
        if self.late_p99_ms > MAX_LATE_MS:
            found.append(f"requests went out up to {self.late_p99_ms:.0f} ms late (p99)")
        return tuple(found)


class HealthWatch:
    """Watches this process from `start` to `stop`."""

    def __init__(self) -> None:
        self._lags_s: list[float] = []
        self._task: asyncio.Task[None] | None = None
        self._began_s = self._cpu_s = 0.0
        self._times = CoreTimes(0.0, 0.0)

    def start(self) -> None:
        """Begin."""
        self._began_s, self._cpu_s = time.perf_counter(), time.process_time()
        self._times = core_times(os.getpid())
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="client-health")

    async def stop(self, late_s: Sequence[float] = ()) -> ClientHealth:
        """End, and judge; `late_s` is how long after its time each request was sent."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        elapsed_s = max(time.perf_counter() - self._began_s, 1e-9)
        times = core_times(os.getpid()).since(self._times)
        return ClientHealth(
            cpu_share=(time.process_time() - self._cpu_s) / elapsed_s,
            waited_share=times.waited_share,
            lag_p99_ms=_p99_ms(self._lags_s),
            late_p99_ms=_p99_ms(late_s),
        )

    async def _watch(self) -> None:
        while True:
            due_s = time.perf_counter() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self._lags_s.append(max(0.0, time.perf_counter() - due_s))


def _p99_ms(seconds: Sequence[float]) -> float:
    return float(np.percentile(np.asarray(seconds), 99)) * 1e3 if len(seconds) else 0.0
