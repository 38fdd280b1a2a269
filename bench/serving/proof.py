"""Whether a promise is kept: the verdict by class, and over all that was looked at.

Owns the rules. Pure. A class is kept when even the lower end of its attainment's interval reaches what was promised,
and not kept when even the upper end does not; else nobody can tell yet, and the number of requests that could is named.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.serving import statistics
from bench.serving.load_run import Run
from bench.serving.metrics import ClassResult, ClassTargets, Metrics, Targets, promises
from bench.serving.parity import Parity
from bench.serving.stages import Stages
from bench.serving.statistics import Estimate
from bench.serving.timing import Timing
from sim.plan import Interval

# The part of a target that the client itself may add before a missed promise is no longer the server's.
_CLIENTS_SHARE: Final = 0.2
_LEAST_MARGIN: Final = 0.01


class Verdict(enum.StrEnum):
    """What is known of a promise."""

    KEPT = "kept"
    NOT_KEPT = "not kept"
    CANNOT_TELL = "cannot tell yet"


@dataclass(frozen=True, slots=True)
class ClassVerdict:
    """One class."""

    name: str
    targets: Targets
    attainment: Estimate
    verdict: Verdict
    why: str  # empty when kept
    planned: Interval | None = None  # attainment that the plan foresaw at its rate


@dataclass(frozen=True, slots=True)
class RatePoint:
    """What was seen at another rate, for the curve."""

    rate: float
    attainment: Mapping[str, float]  # by class
    goodput: float


@dataclass(frozen=True, slots=True)
class PlannedFor:
    """What the plan of the running pools foresaw."""

    rate: float | None  # asked for; None: as much as possible
    goodput: Interval  # highest rate that keeps every promise
    attainment: Mapping[str, Interval]  # by class, at `rate` or at the goodput
    curve: tuple[RatePoint, ...] = ()
    devices: int = 0  # that the planned pools have

    @property
    def safe_rate(self) -> float | None:
        """The rate to hold the plan to: what was asked for, else the lower end of what it says it can carry."""
        low = self.goodput.low
        return self.rate or (low if 0 < low < math.inf else None)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether the router's predictions of one quantity are believed."""

    slo_class: str
    quantity: str
    coverage: float | None
    is_trusted: bool
    reason: str
    outcomes: int = 0  # that the coverage comes from
    band: tuple[float, float] = (0.0, 1.0)  # in which the coverage of a right interval lies
    is_refuted: bool = False  # neither trusted nor refuted: too little was seen

    @property
    def is_covered(self) -> bool:
        """Whether as many outcomes lie within the interval as should."""
        return self.coverage is None or self.band[0] <= self.coverage <= self.band[1]


@dataclass(frozen=True, slots=True)
class Foreseen:
    """How TTFT compares with what the router foresaw of each request at its arrival."""

    requests: int
    low: float  # actual over predicted: 5th percentile
    median: float
    high: float  # 95th


@dataclass(frozen=True, slots=True)
class SlowestTimeline:
    """Where the time of the request with the longest TTFT went, as the router explains it."""

    request_id: str
    stages: tuple[tuple[str, float], ...]  # name and ms, in their order
    output_ms: float  # from the first token to the last


@dataclass(frozen=True, slots=True)
class Proof:
    """All that was looked at."""

    config: str
    url: str
    model: str
    rate: float
    traffic: str
    classes: tuple[ClassVerdict, ...]
    metrics: Metrics
    run: Run
    targets: ClassTargets
    parity: Parity
    ledger: tuple[str, ...] | None  # findings; None: nobody could be asked
    calibration: tuple[Calibration, ...]
    stages: Stages | None
    plan: PlannedFor | None
    curve: tuple[RatePoint, ...] = ()
    devices: int = 0  # workers' GPUs, else workers
    foreseen: Foreseen | None = None  # None: the router foresaw nothing
    slowest: SlowestTimeline | None = None  # None: it cannot be explained any more
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Sum everything up: one broken thing breaks the promise, one open question leaves it open."""
        if self.parity.is_broken or self.ledger:
            return Verdict.NOT_KEPT
        verdicts = {found.verdict for found in self.classes}
        for verdict in (Verdict.NOT_KEPT, Verdict.CANNOT_TELL):
            if verdict in verdicts:
                return verdict
        return Verdict.KEPT if verdicts else Verdict.CANNOT_TELL


def foreseen(timings: Sequence[Timing]) -> Foreseen | None:
    """Compare, by the comment that ends each stream; None: none of them told of a prediction."""
    ratios = []
    for timing in timings:
        predicted, actual = timing.told.get("predicted_ttft_ms"), timing.told.get("ttft_ms")
        if isinstance(predicted, (int, float)) and isinstance(actual, (int, float)) and predicted > 0:
            ratios.append(actual / predicted)
    if not ratios:
        return None
    low, median, high = (float(value) for value in np.quantile(ratios, (0.05, 0.5, 0.95)))
    return Foreseen(len(ratios), low, median, high)


def judge(metrics: Metrics, run: Run, targets: ClassTargets, plan: PlannedFor | None) -> tuple[ClassVerdict, ...]:
    """Judge every class that something was promised to."""
    results = {found.name: found for found in metrics.classes}
    verdicts = []
    for name, promised in promises(targets).items():
        planned = None if plan is None else plan.attainment.get(name)
        found = results.get(name)
        if found is None or not found.attainment.count:
            nothing = Estimate(Interval(0.0, float("nan"), 1.0), 0)
            why = "no request of it was sent"
            verdicts.append(ClassVerdict(name, promised, nothing, Verdict.CANNOT_TELL, why, planned))
        else:
            verdict, why = _judged(found, run)
            verdicts.append(ClassVerdict(name, promised, found.attainment, verdict, why, planned))
    return tuple(verdicts)


def _judged(found: ClassResult, run: Run) -> tuple[Verdict, str]:
    ends, promised = found.attainment.interval, found.targets.attainment
    if ends.low >= promised:
        return Verdict.KEPT, ""
    late_ms = max(run.health.lag_p99_ms, run.health.late_p99_ms)
    if ends.high < promised:
        if late_ms > _CLIENTS_SHARE * found.targets.ttft_ms:
            return Verdict.CANNOT_TELL, f"the client itself was up to {late_ms:.0f} ms late (p99); see its problems"
        return Verdict.NOT_KEPT, f"at most {ends.high:.1%} met both targets"
    margin = max(_LEAST_MARGIN, abs(ends.mid - promised))
    needed = max(statistics.requests_for(promised, margin), 2 * found.attainment.count)
    return Verdict.CANNOT_TELL, f"run longer (--seconds) or faster (--rate): about {needed:,} requests of it could tell"
