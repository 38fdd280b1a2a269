"""When requests are sent: at fixed times however slow the server is, or by a fixed number of clients.

Owns arrival times and their names, which are those of `vllm bench serve`. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from core.errors import ConfigError
from sim.workload import Floats


@dataclass(frozen=True, slots=True)
class LoadShape:
    """How load is offered."""

    rate: float = math.inf  # requests per second; inf: all are due at once
    burstiness: float = 1.0  # shape of the gamma distribution of gaps: 1 is Poisson, less is burstier, inf a clock
    max_concurrency: int | None = None  # requests in flight; with an infinite rate: a closed loop of so many clients
    ramp_up_s: float = 0.0  # until all of them take part
    seconds: float | None = None  # after which nothing is sent
    keeps_times: bool = False  # the dataset's own times, stretched to `rate` if that is finite

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ConfigError(f"--request-rate is {self.rate:g}; it must be above 0, or inf")
        if not self.burstiness > 0:
            raise ConfigError(f"--burstiness is {self.burstiness:g}; it must be above 0 (1 is Poisson)")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ConfigError(f"--max-concurrency is {self.max_concurrency}; it must be at least 1")

    @property
    def is_open(self) -> bool:
        """Whether a slow server cannot slow the load."""
        return self.max_concurrency is None

    def arrivals(self, count: int, seed: int, own_s: Floats | None = None) -> Floats:
        """Give the times at which `count` requests are due, from 0; none after `seconds`.

        As in vllm/benchmarks/serve.py, gaps are drawn from a gamma distribution and then stretched to take exactly
        count / rate together, so that two runs of a rate offer the same load.
        """
        if self.keeps_times and own_s is not None:
            times: Floats = own_s[:count] - own_s[0]
            if math.isfinite(self.rate) and times[-1] > 0:
                times = times * ((count - 1) / times[-1] / self.rate)
        elif math.isinf(self.rate):
            times = np.zeros(count)
        else:
            times = self._drawn(count, seed)
        if self.seconds is None:
            return times
        kept: Floats = times[times < self.seconds]
        return kept

    def count(self, seconds: float) -> int:
        """Say how many requests are due in so many seconds; needs a finite rate."""
        return max(1, math.ceil(self.rate * seconds))

    def _drawn(self, count: int, seed: int) -> Floats:
        rng = np.random.default_rng([seed, 0xA441])
        mean_s = 1.0 / self.rate
        gaps_s = (
            np.full(count, mean_s)
            if math.isinf(self.burstiness)
            else rng.gamma(self.burstiness, mean_s / self.burstiness, count)
        )
        times = np.cumsum(gaps_s)
        stretched: Floats = times * (count * mean_s / times[-1])
        return stretched

    def limit_at(self, now_s: float) -> int | None:
        """Say how many requests may be in flight `now_s` seconds after the start; None: any number."""
        if self.max_concurrency is None or now_s >= self.ramp_up_s:
            return self.max_concurrency
        return max(1, math.ceil(self.max_concurrency * now_s / self.ramp_up_s))
