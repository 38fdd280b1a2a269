"""Whether predictions can be believed: how often their intervals hold, what widens them, and when they are trusted.

Owns the residuals of each SLO class over a rolling window, and nothing else: no clock, no random number, so equal
observations give equal answers. It is fed by whoever drives a policy, which takes the answers as data (RequestShape);
so decisions replay. Must not know policies, metrics or who asks.

Three steps, each taken on evidence:

1. The interval of a prediction is its value times (1 +- spread). The share of outcomes within it should be TARGET.
   With n outcomes that share errs by sqrt(TARGET (1 - TARGET) / n) (binomial); BAND_Z such errors are the band.
2. When the share leaves the band, spreads are multiplied by the quantile of the residuals that would have held TARGET
   of the window, with the correction for a finite sample: ceil((n + 1) TARGET) of n residuals. This is split conformal
   prediction with residuals scaled by the spread (Lei et al., "Distribution-Free Predictive Inference for Regression",
   2018, sections 2.2 and 5.2), over the latest outcomes only, for loads drift.
3. When intervals as they were given out, widened ones, still fall below the band, or the factor exceeds MAX_FACTOR, or
   the median outcome is more than MAX_BIAS times the prediction or less than one MAX_BIAS-th of it, predictions are not
   trusted. They are again when a whole window of later ones held: within the band, at a factor and a bias of at most
   the square roots of those limits, so that trust does not flicker.

While predictions are not trusted, admission goes by what is measured: the share of the requests served last that kept
their SLO, see `admits_by_measure`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from core.types import Forecast

TARGET: Final = 0.9
WINDOW: Final = 200
MIN_OUTCOMES: Final = 50  # fewer say nothing: the band would be wider than a tenth
JUDGE_EVERY: Final = 50
BAND_Z: Final = 2.58  # one check in a hundred errs
MAX_FACTOR: Final = 4.0
MAX_BIAS: Final = 2.0
# Of predictions that claim to be surer, or claim nothing: step times tell nothing of what lies between steps (a router,
# an HTTP layer, a busy core), which was 10 to 25 % of a TTFT of 100 ms on two cores.
MIN_SPREAD: Final = 0.15
MIN_ADMITTED: Final = 0.1  # share let through whatever is measured, for nothing else brings new measurements
_GOLDEN: Final = (math.sqrt(5) - 1) / 2  # its multiples are spread evenly over [0, 1) (Weyl, 1916)
_NO_INTERVAL: Final = 100.0  # a factor that says that there is none


@dataclass(frozen=True, slots=True)
class Widening:
    """What the spreads of a prediction are multiplied by."""

    ttft: float = 1.0
    tpot: float = 1.0


AS_PREDICTED: Final = Widening()


@dataclass(frozen=True, slots=True)
class Coverage:
    """How the predictions of one quantity did, over the latest outcomes of one class."""

    slo_class: str
    quantity: str  # "ttft" or "tpot"
    outcomes: int  # in the window
    coverage: float | None  # share of them within the interval that was given out; None: there are none
    band: tuple[float, float]  # in which that share may lie by chance
    factor: float  # that spreads are multiplied by
    bias: float | None  # median of outcome over prediction
    trusted: bool
    reason: str  # in words: why trusted or not


class Calibration:
    """Follows the predictions of every class."""

    def __init__(self, classes: Iterable[str]) -> None:
        """Begin without evidence: factors are 1 and predictions are trusted."""
        self._classes = {name: (_Residuals(), _Residuals()) for name in classes}
        self._told = dict.fromkeys(self._classes, AS_PREDICTED)
        self._kept: dict[str, deque[bool]] = {name: deque(maxlen=WINDOW) for name in self._classes}

    def observe(
        self,
        slo_class: str,
        forecast: Forecast,
        ttft_s: float | None,
        tpot_s: float | None,
        *,
        widening: Widening = AS_PREDICTED,
    ) -> None:
        """Compare a prediction with what came of it, both counted from the decision; None: it cannot be told.

        `widening` is what the forecast's spreads have been multiplied by already.
        """
        ttft, tpot = self._classes[slo_class]
        if ttft_s is not None:
            ttft.add(ttft_s, forecast.ttft_s, forecast.ttft_spread / widening.ttft, widening.ttft)
        if tpot_s is not None:
            tpot.add(tpot_s, forecast.tpot_s, forecast.tpot_spread / widening.tpot, widening.tpot)

    def served(self, slo_class: str, kept: bool) -> None:
        """Note whether a request that was let in kept its SLO; refused ones and clients that left say nothing."""
        self._kept[slo_class].append(kept)

    def measured_attainment(self, slo_class: str) -> float | None:
        """What admission goes by instead of predictions: the share of the latest served requests that kept their SLO.

        None while predictions are trusted, or too few requests were served.
        """
        kept = self._kept[slo_class]
        return None if len(kept) < MIN_OUTCOMES or self.trusted(slo_class) else sum(kept) / len(kept)

    def spread_factor(self, slo_class: str) -> Widening:
        """What the spreads of the class's next predictions are to be multiplied by; at least 1."""
        ttft, tpot = self._classes[slo_class]
        told = self._told[slo_class]
        if told.ttft != ttft.factor or told.tpot != tpot.factor:
            told = self._told[slo_class] = Widening(ttft.factor, tpot.factor)
        return told

    def trusted(self, slo_class: str) -> bool:
        """Whether requests of the class may be refused because of predictions."""
        ttft, tpot = self._classes[slo_class]
        return ttft.trusted and tpot.trusted

    def report(self) -> tuple[Coverage, ...]:
        """Tell of every class: TTFT, then TPOT."""
        return tuple(
            residuals.report(name, quantity)
            for name, both in self._classes.items()
            for quantity, residuals in zip(("ttft", "tpot"), both, strict=True)
        )


class _Outcome(NamedTuple):  # two for every request
    """One prediction that has come true or not."""

    residual: float  # distance from the prediction, in half widths of its unwidened interval
    ratio: float  # outcome over prediction
    held: bool  # within the interval that was given out


class _Residuals:
    """The latest outcomes of one quantity of one class, and what follows from them."""

    __slots__ = ("_fresh", "_held", "_high", "_low", "_outcomes", "_same_factor", "factor", "reason", "trusted")

    def __init__(self) -> None:
        self._outcomes: deque[_Outcome] = deque(maxlen=WINDOW)
        self._held = 0  # how many of them were within their interval
        self._high = 0  # and how many beyond MAX_BIAS times the prediction
        self._low = 0
        self._same_factor = 0  # outcomes since the factor changed
        self._fresh = 0  # outcomes since factor or trust changed, WINDOW at most
        self.factor = 1.0
        self.trusted = True
        self.reason = "no evidence yet"

    def add(self, actual_s: float, predicted_s: float, spread: float, factor: float) -> None:
        """Take one outcome; a prediction of nothing or no number counts as one that did not hold."""
        outcome = _outcome(actual_s, predicted_s, spread, factor)
        if len(self._outcomes) == WINDOW:
            self._count(self._outcomes[0], -1)
        self._outcomes.append(outcome)
        self._count(outcome, 1)
        self._fresh += 1
        self._same_factor += 1
        if self._fresh % JUDGE_EVERY == 0 and len(self._outcomes) >= MIN_OUTCOMES:
            self._judge()

    def _count(self, outcome: _Outcome, change: int) -> None:
        if outcome.held:
            self._held += change
        if outcome.ratio > MAX_BIAS:
            self._high += change
        elif outcome.ratio < 1 / MAX_BIAS:
            self._low += change

    def report(self, slo_class: str, quantity: str) -> Coverage:
        """Sum up."""
        n = len(self._outcomes)
        return Coverage(
            slo_class,
            quantity,
            n,
            self._held / n if n else None,
            band(n),
            self.factor,
            self._bias() if n else None,
            self.trusted,
            self.reason,
        )

    def _judge(self) -> None:
        """Widen, narrow, give up or regain trust."""
        n = len(self._outcomes)
        low, high = band(n)
        within = self._held / n
        if self._same_factor < n:  # the older ones had other intervals than those given out now
            within = sum(outcome.residual <= self.factor for outcome in self._outcomes) / n
        if not low <= within <= high and (within < low or self.factor > 1.0):
            self._set_factor(self._quantile())
        if not self.trusted:
            self._try_regain()
            return
        found = self._fault()
        if found is None:
            self.reason = f"{self._held} of the latest {n} outcomes were within their interval"
            return
        self.trusted, self.reason, self._fresh = False, found, 0

    def _fault(self) -> str | None:
        """Say why predictions cannot be trusted; None when they can."""
        if max(self._high, self._low) > len(self._outcomes) / 2:  # so the median is beyond it too
            return f"the median outcome is {self._bias():.2f} times the prediction"
        if self.factor > MAX_FACTOR:
            return f"intervals would have to be {self.factor:.1f} times as wide"
        # Those given out since the latest widening must hold; that many are at the end of the window.
        given = list(self._outcomes)[-self._fresh :] if self._fresh else []
        if self.factor > 1.0 and len(given) >= MIN_OUTCOMES:
            held = sum(outcome.held for outcome in given) / len(given)
            if held < band(len(given))[0]:
                return f"only {held:.0%} of outcomes were within their interval, widened as it is"
        return None

    def _try_regain(self) -> None:
        limit = math.sqrt(MAX_BIAS)
        if self._fresh < WINDOW or not 1 / limit <= self._bias() <= limit or self.factor > math.sqrt(MAX_FACTOR):
            return
        if self._held / len(self._outcomes) >= band(len(self._outcomes))[0]:
            self.trusted, self._fresh = True, 0
            self.reason = f"trusted again: {self._held} of the latest {len(self._outcomes)} outcomes were as predicted"

    def _quantile(self) -> float:
        """The factor that would have held TARGET of the window, never below 1."""
        residuals = sorted(outcome.residual for outcome in self._outcomes)
        rank = min(len(residuals), math.ceil((len(residuals) + 1) * TARGET))
        return min(max(1.0, residuals[rank - 1]), _NO_INTERVAL)

    def _set_factor(self, factor: float) -> None:
        if factor != self.factor:
            self.factor = factor
            self._same_factor = 0
            if self.trusted:
                self._fresh = 0

    def _bias(self) -> float:
        ratios = sorted(outcome.ratio for outcome in self._outcomes)
        return ratios[len(ratios) // 2]


def admits_by_measure(attainment: float | None, target: float, sequence: int) -> bool:
    """Let a request in where predictions are not trusted, by what requests before it got.

    Below the target so many of each run of requests are let in as attainment is of the target, spread evenly by their
    sequence numbers: less load where promises break, and no chance in a decision.
    """
    if attainment is None or attainment >= target:
        return True
    return sequence * _GOLDEN % 1.0 < max(MIN_ADMITTED, attainment / target)


def band(n: int) -> tuple[float, float]:
    """The range in which the share of n outcomes lies by chance when each is within its interval with TARGET."""
    if n == 0:
        return 0.0, 1.0
    error = BAND_Z * math.sqrt(TARGET * (1 - TARGET) / n)
    return max(0.0, TARGET - error), min(1.0, TARGET + error)


def _outcome(actual_s: float, predicted_s: float, spread: float, factor: float) -> _Outcome:
    half_s = (spread if spread > MIN_SPREAD else MIN_SPREAD) * predicted_s  # 0 also of what is too small for a product
    if not (half_s > 0 and actual_s >= 0 and math.isfinite(half_s) and math.isfinite(actual_s)):
        return _Outcome(math.inf, math.inf, False)
    residual = abs(actual_s - predicted_s) / half_s
    return _Outcome(residual, actual_s / predicted_s, residual <= factor)
