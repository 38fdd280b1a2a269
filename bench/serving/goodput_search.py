"""The highest rate at which a promise is kept, by doubling and then halving the gap.

Owns the search. Must not know what is measured at a rate.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.serving.load_run import Live
from bench.serving.metrics import ClassTargets, targets_of
from sim.plan import Interval


@dataclass(frozen=True, slots=True)
class Measured:
    """What was seen at one rate."""

    rate: float
    is_kept: bool  # every class at its attainment
    attainment: Interval  # of the class nearest to its promise
    goodput: float  # requests per second that met their targets


@dataclass(frozen=True, slots=True)
class Found:
    """The answer: the promise is kept at `low` and not at `high`; inf where no rate was too high."""

    low: float  # 0: not even the least rate that was tried
    high: float
    points: tuple[Measured, ...]  # by rate


MeasureAt = Callable[[float], Awaitable[Measured]]


async def search(
    measure_at: MeasureAt,
    start: float,
    *,
    precision: float = 0.1,
    most: int = 10,
    is_over: Callable[[], bool] = lambda: False,
) -> Found:
    """Measure at most `most` rates, until both ends are within `precision` of each other, or `is_over` says so.

    Chance may keep one rate and miss a lower one; the lower answer holds, for no rate above a missed one is tried.
    """
    points: dict[float, Measured] = {}
    low, high, rate = 0.0, math.inf, start
    while len(points) < most and (low == 0.0 or high / low > 1.0 + precision):
        found = await measure_at(rate)
        if is_over():  # what was interrupted says nothing of its rate
            break
        points[rate] = found
        if found.is_kept:
            low = rate
        else:
            high = rate
        rate = _next(low, high)
    return Found(low, high, tuple(points[each] for each in sorted(points)))


def _next(low: float, high: float) -> float:
    if math.isinf(high):
        return low * 2.0
    return high / 2.0 if low == 0.0 else math.sqrt(low * high)


class OverSaturation:
    """Tells when a run can no longer keep the promise, so that it may stop: the load only piles up from there.

    It is lost once more requests have missed than the loosest promise allows of all that will be sent, `margin` times.
    """

    def __init__(self, targets: ClassTargets, *, margin: float = 1.5, fewest: int = 20) -> None:
        self._targets = targets
        self._margin = margin
        self._fewest = fewest
        self._seen = 0
        self._missed = 0

    def __call__(self, live: Live) -> bool:
        """Count what has ended since the last time, and judge."""
        for timing in live.ended[self._seen :]:
            found = targets_of(timing, self._targets)
            if found is not None and not timing.is_cancelled and not found.met_by(timing):
                self._missed += 1
        self._seen = len(live.ended)
        least = min((targets.attainment for targets in self._targets.values()), default=0.0)
        allowed = max(self._fewest, round(self._margin * (1.0 - least) * live.total))
        return self._missed > allowed
