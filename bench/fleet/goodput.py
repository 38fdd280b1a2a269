"""The highest rate that a cluster keeps a promise at, by draw of the requests, and how sure that is.

Owns the criterion, the same for every system: of the requests offered after the first fifth, the promised share must
meet both targets; refused ones have not. Must not know which systems there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sim.cluster import ClusterSpec
from sim.outcome import Target
from sim.plan import Interval
from sim.search.crossing import STRIDE, highest_kept
from sim.search.goodput import Simulate, rate_of, step_below
from sim.workload import Workload

RAMP_SHARE: Final = 0.2  # of the requests: they meet batches that still fill
_BEYOND: Final = 4_000  # steps above the hint, a factor of 5e8: no bound but that of the arithmetic
_CURVE: Final = (0.7, 1.3)  # of the goodput: where else attainment is told
_MOST_SHIFT: Final = 0.25  # of a logarithm
# Student's t, 95 %, by degrees of freedom: both ends of a 90 % interval from so few draws.
_T: Final = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)


@dataclass(frozen=True, slots=True)
class Measured:
    """One system in one scene."""

    goodput: tuple[float, ...]  # requests/s by draw, the trace itself first; 0 where no rate is kept
    curve: tuple[tuple[float, float], ...]  # rate and attainment of the trace itself, by rising rate


@dataclass(frozen=True, slots=True)
class Judged:
    """A cluster under a promise, with what simulates it."""

    cluster: ClusterSpec
    targets: tuple[Target, ...]
    run: Simulate

    def attained(self, workload: Workload, rate: float) -> float:
        """Return the share that met both targets at a rate."""
        outcome = self.run(self.cluster, workload.at_rate(rate), self.targets)
        return float(outcome.met(self.targets)[int(RAMP_SHARE * len(workload)) :].mean())

    def goodput(
        self, workload: Workload, hint: float, *, above: float = 0.0, seen: dict[float, float] | None = None
    ) -> float:
        """Return the highest rate kept, 0 for none or none above `above`; `seen` gets attainment by rate."""
        margins: dict[int, float] = {}

        def margin(step: int) -> float:
            share = self.attained(workload, rate_of(step))
            if seen is not None:
                seen[rate_of(step)] = share
            margins[step] = share - self.targets[0].attainment
            return margins[step]

        floor = step_below(above) if above > 0 else None
        near = step_below(hint)
        kept = highest_kept(margin, near, ceiling=near + _BEYOND, above=floor, width=STRIDE)
        return 0.0 if kept is None else _straight(margins, kept)


def _straight(margins: dict[int, float], kept: int) -> float:
    """Return the rate at which attainment, straight between the tries, falls below what was promised."""
    failed = min((step for step in margins if step > kept and margins[step] < 0), default=None)
    if failed is None:
        return rate_of(kept)
    share = max(0.0, margins[kept]) / (max(0.0, margins[kept]) - margins[failed])
    return float(rate_of(kept) * (rate_of(failed) / rate_of(kept)) ** share)


def measure(judged: Judged, draws: Sequence[Workload], hint: float) -> Measured:
    """Find the goodput of the first draw by search, those of the others from it, and the curve of the first."""
    seen: dict[float, float] = {}
    first = judged.goodput(draws[0], hint, seen=seen)
    for factor in _CURVE:
        rate = factor * (first or hint)
        seen.setdefault(rate, judged.attained(draws[0], rate))
    points = tuple(sorted(seen.items()))
    promised = judged.targets[0].attainment
    others = [shifted(points, first, promised, judged.attained(draw, first)) if first else 0.0 for draw in draws[1:]]
    return Measured((first, *others), points)


def shifted(curve: Sequence[tuple[float, float]], goodput: float, promised: float, attained: float) -> float:
    """Return the goodput of a draw that has `attained` at the `goodput` of the first, whose curve is given.

    To first order: both curves are taken to be as steep about there (the delta method), so one simulation of a draw
    suffices. Shares that do not change say nothing; then, and where little is known, it moves by a quarter at most.
    """
    below = [point for point in curve if point[0] <= goodput]
    above = [point for point in curve if point[0] > goodput]
    if not below or not above or below[-1][1] - above[0][1] <= 0:
        return goodput
    steepness = (below[-1][1] - above[0][1]) / math.log(above[0][0] / below[-1][0])
    return goodput * math.exp(max(-_MOST_SHIFT, min(_MOST_SHIFT, (attained - promised) / steepness)))


def best_of(
    clusters: Sequence[ClusterSpec], judge: Callable[[ClusterSpec], Judged], workload: Workload, hint: float
) -> tuple[ClusterSpec, float]:
    """Return the cluster that keeps the most on `workload`, and what; the first and 0 when none keeps anything."""
    best, most = clusters[0], 0.0
    for cluster in clusters:
        rate = judge(cluster).goodput(workload, most or hint, above=most)
        if rate > most:
            best, most = cluster, rate
    return best, most


def interval(values: Sequence[float]) -> Interval:
    """Return a 90 % interval about the first: the draws are resamples, so their spread is its standard error.

    On the scale of logarithms, by Student's t for so few draws. A draw in which nothing is kept makes the lower end 0.
    """
    mid, logs = values[0], [math.log(value) for value in values if value > 0]
    if mid <= 0 or len(logs) < 2:
        return Interval(0.0 if mid <= 0 or len(logs) < len(values) else mid, mid, mid)
    off = _T[min(len(logs) - 2, len(_T) - 1)] * float(np.std(logs, ddof=1))
    low = 0.0 if len(logs) < len(values) else mid * math.exp(-off)
    return Interval(low, mid, mid * math.exp(off))


def ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Return the interval of a ratio; both met the same requests in each draw, so it is tighter than either.

    Infinite where the second keeps nothing and the first does.
    """
    if not all(below):
        end = math.inf if above[0] else 1.0
        return Interval(end, end, end)
    return interval([a / b for a, b in zip(above, below, strict=True)])
