"""Intervals for what a benchmark estimates, honest about requests that resemble their neighbours.

Owns the statistics. Pure. Intervals are of 90 %, as everywhere in Baton.

Requests of one run are no independent draws: a queue makes neighbours alike. So every interval here takes the number of
independent requests that the series is worth: the method of batch means (Law, Simulation Modeling and Analysis, 9.5.3)
compares the spread of the means of batches with what independent requests would show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.plan import Interval

Values: TypeAlias = NDArray[np.float64]
Z: Final = 1.6448536269514722  # two-sided 90 %
_FEWEST_BATCHED: Final = 40  # values; fewer tell nothing of batches
_BATCHES: Final = (10, 30)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share or figure with its interval, and how many values it comes from."""

    interval: Interval
    count: int

    @property
    def mid(self) -> float:
        """The figure itself."""
        return self.interval.mid


def effective_count(values: ArrayLike) -> float:
    """Say how many independent values a series in order of time is worth; at most its length."""
    series = np.asarray(values, np.float64)
    count = len(series)
    variance = float(series.var()) if count else 0.0
    if count < _FEWEST_BATCHED or variance == 0.0:
        return float(count)
    batches = min(_BATCHES[1], max(_BATCHES[0], count // 20))
    size = count // batches
    means = series[: size * batches].reshape(batches, size).mean(axis=1)
    design = float(means.var(ddof=1)) * size / variance
    # The spread of so few means is itself uncertain: what independent values would show by chance is no correlation.
    if design <= 1.0 + Z * math.sqrt(2.0 / (batches - 1)):
        return float(count)
    return max(1.0, count / design)


def wilson(share: float, count: float) -> Interval:
    """Give Wilson's interval (1927) of a share seen in `count` independent requests."""
    if count <= 0:
        return Interval(0.0, share, 1.0)
    scale = 1.0 + Z * Z / count
    middle = (share + Z * Z / (2 * count)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return Interval(min(share, max(0.0, middle - half)), share, max(share, min(1.0, middle + half)))


def share(kept: Sequence[bool] | NDArray[np.bool_]) -> Estimate:
    """Estimate a share from a series in order of time; without one it may be anything."""
    series = np.asarray(kept, np.float64)
    if not len(series):
        return Estimate(Interval(0.0, math.nan, 1.0), 0)
    return Estimate(wilson(float(series.mean()), effective_count(series)), len(series))


def mean(values: ArrayLike) -> Estimate:
    """Estimate a mean from a series in order of time."""
    series = np.asarray(values, np.float64)
    if not len(series):
        return Estimate(Interval(math.nan, math.nan, math.nan), 0)
    middle = float(series.mean())
    half = Z * float(series.std(ddof=1)) / math.sqrt(effective_count(series)) if len(series) > 1 else math.inf
    return Estimate(Interval(middle - half, middle, middle + half), len(series))


def quantile(values: ArrayLike, q: float) -> Estimate:
    """Estimate a quantile from a series in order of time, by order statistics.

    The ends are the quantiles at Wilson's interval of q: where the share of values below may lie, the value may. An
    upper end that no value supports is inf, a lower one -inf.
    """
    series = np.asarray(values, np.float64)
    if not len(series):
        return Estimate(Interval(math.nan, math.nan, math.nan), 0)
    middle = float(np.quantile(series, q))
    count = effective_count(series <= middle)
    ends = wilson(q, count)
    low = float(np.quantile(series, ends.low, method="lower")) if ends.low * count >= 1.0 else -math.inf
    high = float(np.quantile(series, ends.high, method="higher")) if (1 - ends.high) * count >= 1.0 else math.inf
    return Estimate(Interval(min(low, middle), middle, max(high, middle)), len(series))


def requests_for(share_: float, half_width: float) -> int:
    """Say how many independent requests know a share to plus or minus `half_width`."""
    # At a share of 0 or 1 Wilson's interval is z^2 / (n + z^2) wide; in between it is nearly the normal one.
    return math.ceil(max(share_ * (1 - share_) * (Z / half_width) ** 2, Z * Z * (0.5 / half_width - 1)))


def halves_differ(values: ArrayLike) -> float:
    """Tell whether a series drifts: how many standard errors its two halves' means are apart, signed as it goes."""
    series = np.asarray(values, np.float64)
    if len(series) < _FEWEST_BATCHED:
        return 0.0
    first, second = np.array_split(series, 2)
    variance = sum(float(half.var(ddof=1)) / effective_count(half) for half in (first, second))
    gap = float(second.mean() - first.mean())
    return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0
