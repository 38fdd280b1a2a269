"""Whether predictions can be believed: how often their intervals hold, what ends they have, and when they are trusted.

Owns what came of the predictions of each SLO class over a rolling window, and nothing else: no clock, no random number,
so equal observations give equal answers. It is fed by whoever drives a policy, which takes the answers as data
(RequestShape); so decisions replay. Must not know policies, metrics or who asks.

1. The ends of intervals follow the outcomes (core.policy.interval), those of each class apart, and of a TTFT those of
   requests that must wait apart from the others: a wait can only be guessed, a prompt's own time is known.
2. The share of outcomes within their interval, as it was given out with the decision, should be TARGET. With n outcomes
   that share errs by sqrt(TARGET (1 - TARGET) / n) (binomial), with n over RUN for those that share a batch err alike;
   BAND_Z such errors are the band.
3. Predictions are trusted once MIN_OUTCOMES were seen and the share is not below the band, of all and of either kind;
   while the median outcome is within a factor of MAX_BIAS of its prediction, and most intervals say something
   (MAX_WIDTH). When that fails they are not, until a whole window of later ones was right: so trust does not flicker.

While there is evidence against predictions, admission goes by what is measured: the share of the requests served last
that kept their SLO, see `admits_by_measure`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from core.policy.interval import TARGET, AdaptiveInterval, residual_of
from core.types import Forecast, Margins

WINDOW: Final = 200
MIN_OUTCOMES: Final = 50  # fewer say nothing: the band would be wider than a tenth
BAND_Z: Final = 2.58  # one check in a hundred errs
RUN: Final = 2.0  # the share of 200 varied twice as much as that of independent outcomes, TPOT in simulated load steps
MAX_BIAS: Final = 2.0
MAX_WIDTH: Final = 16.0  # upper over lower end: "a quarter to four times" says nothing
MIN_ADMITTED: Final = 0.1  # share let through whatever is measured, for nothing else brings new measurements
_GOLDEN: Final = (math.sqrt(5) - 1) / 2  # its multiples are spread evenly over [0, 1) (Weyl, 1916)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How the predictions of one quantity did, over the latest outcomes of one class."""

    slo_class: str
    quantity: str  # "ttft" or "tpot"
    outcomes: int  # in the window
    coverage: float | None  # share of them within the interval that was given out; None: there are none
    band: tuple[float, float]  # in which that share may lie by chance
    factor: float  # half the width of the next interval, in spreads as claimed; the wider kind's
    bias: float | None  # median of outcome over prediction
    trusted: bool
    reason: str  # in words: why trusted or not

    @property
    def is_refuted(self) -> bool:
        """Whether there is evidence against the predictions, so that admission goes by what is measured."""
        return not self.trusted and self.outcomes >= MIN_OUTCOMES


class Calibration:
    """Follows the predictions of every class."""

    def __init__(self, classes: Iterable[str]) -> None:
        """Begin without evidence."""
        self._classes = {name: (_Quantity(2), _Quantity(1)) for name in classes}
        self._told: dict[str, Margins | None] = dict.fromkeys(self._classes)  # None: to be made anew
        self._kept: dict[str, deque[bool]] = {name: deque(maxlen=WINDOW) for name in self._classes}

    def observe(
        self, slo_class: str, forecast: Forecast, *, ttft_s: float | None = None, tpot_s: float | None = None
    ) -> None:
        """Compare a prediction with what came of it, counted from the decision; None: it is not known, or not yet."""
        ttft, tpot = self._classes[slo_class]
        if ttft_s is not None:
            given = forecast.ttft_s, forecast.ttft_spread, forecast.ttft_low_s, forecast.ttft_high_s
            ttft.add(ttft_s, *given, kind=int(forecast.waits))
        if tpot_s is not None:
            tpot.add(tpot_s, forecast.tpot_s, forecast.tpot_spread, forecast.tpot_low_s, forecast.tpot_high_s)
        self._told[slo_class] = None

    def served(self, slo_class: str, kept: bool) -> None:
        """Note whether a request that was let in kept its SLO; refused ones and clients that left say nothing."""
        self._kept[slo_class].append(kept)

    def measured_attainment(self, slo_class: str) -> float | None:
        """What admission goes by instead of predictions: the share of the latest served requests that kept their SLO.

        None while nothing speaks against predictions, or too few requests were served.
        """
        kept = self._kept[slo_class]
        ttft, tpot = self._classes[slo_class]
        return sum(kept) / len(kept) if len(kept) >= MIN_OUTCOMES and (ttft.is_refuted or tpot.is_refuted) else None

    def margins(self, slo_class: str) -> Margins:
        """Give the ends of the intervals of the class's next predictions."""
        told = self._told[slo_class]
        if told is None:
            ttft, tpot = self._classes[slo_class]
            (direct, waiting), (token,) = ttft.ends, tpot.ends
            told = Margins(direct.low, direct.high, waiting.low, waiting.high, token.low, token.high)
            self._told[slo_class] = told
        return told

    def trusted(self, slo_class: str) -> bool:
        """Whether it was seen that the predictions of the class hold."""
        ttft, tpot = self._classes[slo_class]
        return ttft.is_trusted and tpot.is_trusted

    def report(self) -> tuple[Coverage, ...]:
        """Tell of every class: TTFT, then TPOT."""
        return tuple(
            found.report(name, quantity)
            for name, both in self._classes.items()
            for quantity, found in zip(("ttft", "tpot"), both, strict=True)
        )


class _Outcome(NamedTuple):  # two for every request
    """What came of one prediction."""

    ratio: float  # outcome over prediction
    held: bool  # within the interval that was given out
    wide: bool  # which said nothing
    kind: int


class _Quantity:
    """The latest outcomes of one quantity of one class, and what follows from them."""

    __slots__ = ("_fresh", "_held", "_high", "_low", "_outcomes", "_seen", "_wide", "ends", "fault", "is_refuted")

    def __init__(self, num_kinds: int) -> None:
        self.ends = tuple(AdaptiveInterval() for _ in range(num_kinds))
        self._outcomes: deque[_Outcome] = deque()  # WINDOW at most; the counts below are of all and only these
        self._seen = [0] * num_kinds  # by kind
        self._held = [0] * num_kinds
        self._high = self._low = self._wide = 0  # beyond MAX_BIAS times the prediction, below its inverse; and wide
        self._fresh = 0  # outcomes since one at which something was at fault, WINDOW at most
        self.is_refuted = False
        self.fault: tuple[object, ...] = ()  # what costs the trust, or did: a template and its numbers

    @property
    def is_trusted(self) -> bool:
        """Enough was seen, and it was right."""
        return not self.is_refuted and len(self._outcomes) >= MIN_OUTCOMES

    def add(
        self, actual_s: float, predicted_s: float, spread: float, low_s: float, high_s: float, kind: int = 0
    ) -> None:
        """Take one outcome; a prediction of nothing or no number counts as one that did not hold."""
        residual = residual_of(actual_s, predicted_s, spread)
        is_above, is_below = not actual_s <= high_s, actual_s < low_s
        self.ends[kind].add(residual, was_below=is_below, was_above=is_above)
        ratio = actual_s / predicted_s if predicted_s > 0.0 else math.inf
        if len(self._outcomes) == WINDOW:
            self._count(self._outcomes.popleft(), -1)
        outcome = _Outcome(ratio, not (is_above or is_below), not high_s <= MAX_WIDTH * low_s, kind)
        self._outcomes.append(outcome)
        self._count(outcome, 1)
        self._judge()

    def _count(self, outcome: _Outcome, change: int) -> None:
        ratio, held, wide, kind = outcome
        self._seen[kind] += change
        if held:
            self._held[kind] += change
        if not ratio <= MAX_BIAS:
            self._high += change
        elif ratio < 1 / MAX_BIAS:
            self._low += change
        if wide:
            self._wide += change

    def _judge(self) -> None:
        """Give up trust at a fault, and take it back when a window of outcomes was without."""
        if len(self._outcomes) < MIN_OUTCOMES:
            return
        if fault := self._found():
            self.is_refuted, self.fault, self._fresh = True, fault, 0
        elif self.is_refuted:
            self._fresh += 1
            self.is_refuted = self._fresh < WINDOW

    def _found(self) -> tuple[object, ...]:
        """Find what speaks against predictions, nothing if nothing does; put in words only when somebody asks."""
        count, held_of_all = len(self._outcomes), sum(self._held)
        if held_of_all < _LEAST_HELD[count]:
            return "only {} of the latest {} outcomes were within their interval", held_of_all, count
        for seen, held, kind in zip(self._seen, self._held, _KINDS, strict=False):
            if seen >= MIN_OUTCOMES and held < _LEAST_HELD[seen]:
                return "only {} of {} outcomes of requests that {} were within their interval", held, seen, kind
        if 2 * max(self._high, self._low) > count:  # so the median is beyond it too
            return "most outcomes were {} {:g} times their prediction", *(
                ("over", MAX_BIAS) if self._high > self._low else ("under", 1 / MAX_BIAS)
            )
        if 2 * self._wide > count:
            return "half of the intervals are wider than a quarter to {:g} times the prediction", math.sqrt(MAX_WIDTH)
        return ()

    def report(self, slo_class: str, quantity: str) -> Coverage:
        """Sum up."""
        n, held = len(self._outcomes), sum(self._held)
        factor = max((ends.high - ends.low) / 2.0 for ends in self.ends)
        return Coverage(
            slo_class,
            quantity,
            n,
            held / n if n else None,
            band(n),
            factor,
            self._bias() if n else None,
            self.is_trusted,
            self._reason(),
        )

    def _reason(self) -> str:
        count = len(self._outcomes)
        if self.is_refuted:
            template, *numbers = self.fault
            fault = str(template).format(*numbers)
            return fault if self._fresh == 0 else f"{fault}; {self._fresh} of {WINDOW} since were right"
        if count < MIN_OUTCOMES:
            return f"{count} of {MIN_OUTCOMES} outcomes were seen"
        return f"{sum(self._held)} of the latest {count} outcomes were within their interval"

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
    error = BAND_Z * math.sqrt(TARGET * (1 - TARGET) * RUN / n)
    return max(0.0, TARGET - error), min(1.0, TARGET + error)


_KINDS: Final = ("need not wait", "wait")
_LEAST_HELD: Final = tuple(math.ceil(band(count)[0] * count) for count in range(WINDOW + 1))
