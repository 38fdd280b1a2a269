"""The ends of an interval that holds a stated share of outcomes, also while the load drifts.

Owns the latest residuals of one kind of prediction and the two ends that follow from them. Must not know what is
predicted, nor who is told.

A residual is log(outcome / prediction) in units of the spread that the prediction claims, so that a long prompt's
seconds and a short one's milliseconds count alike, and an outcome three times as late is as far off as one three times
as early. The ends are quantiles of the latest residuals (split conformal prediction: Lei et al., "Distribution-Free
Predictive Inference for Regression", 2018, section 2.2), each at a level of its own that rises with every outcome
within the end that was given out and falls with every one beyond it (Gibbs and Candes, "Adaptive Conformal Inference
Under Distribution Shift", 2021, equation 2): whatever the outcomes do, the share beyond tends to what is asked for.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Final

TARGET: Final = 0.9
WINDOW: Final = 100  # residuals
_BEYOND: Final = 1.0 - TARGET  # both ends together
# A quarter of a hundred outcomes may pass until a level has followed a shift, and no more than 3 points of the share
# are noise; of 0.02 to 0.05, the steadiest over windows of 200 in simulated load steps and live runs.
_GAIN: Final = 0.03
_MOST_LEVEL: Final = 0.2
_LEAST_LEVEL: Final = -0.1  # beyond the farthest residual: every outcome of late was
_REACH: Final = 0.075  # of the range of residuals, that an end goes beyond them for each rank that is missing
_LEAST_RANGE: Final = 0.5
# Before anything is known an interval is twice as wide as claimed, as by so many residuals spread evenly over it.
_PRIOR: Final = 10
_PRIOR_END: Final = 2.0
_MOST_RESIDUAL: Final = 50.0
_MOST_LOG: Final = 5.0  # of an end over its prediction
# Of predictions that claim to be surer, or claim nothing: step times tell nothing of what lies between steps (a router,
# an HTTP layer, a busy core), which was 10 to 25 % of a TTFT of 100 ms on two cores.
MIN_SPREAD: Final = 0.15
# And of those that claim to know hardly anything, as while single steps stall: on a logarithmic scale a few such
# spreads would be millions of times the prediction. With it the same live outcomes are held by half the width.
_MOST_SPREAD: Final = 0.5
_exp: Final = math.exp  # looked up for every decision


class AdaptiveInterval:
    """The ends of one kind of prediction; O(log WINDOW) for each outcome."""

    __slots__ = ("_above_level", "_below_level", "_latest", "_ordered", "high", "low")

    def __init__(self) -> None:
        step = 2.0 * _PRIOR_END / _PRIOR
        self._ordered = [-_PRIOR_END + (i + 0.5) * step for i in range(_PRIOR)]  # the residuals, ascending
        self._latest = deque(self._ordered)  # the same as they came
        self._below_level = self._above_level = _BEYOND / 2.0
        self.low, self.high = -_PRIOR_END, _PRIOR_END  # at most and at least 0: the prediction lies within

    def add(self, residual: float, *, was_below: bool, was_above: bool) -> None:
        """Take an outcome; it was below or above the ends that were given out with its prediction, or within."""
        ordered, latest = self._ordered, self._latest
        if len(latest) == WINDOW:
            del ordered[bisect_left(ordered, latest.popleft())]
        latest.append(residual)
        insort(ordered, residual)
        below = above = _BEYOND / 2.0
        if self.low == 0.0 < self.high:  # an end that is the prediction itself: all that may lie beyond, lies above
            below, above = 0.0, _BEYOND
        elif self.low < 0.0 == self.high:
            below, above = _BEYOND, 0.0
        level = self._below_level + _GAIN * (below - was_below)
        self._below_level = level = level if _LEAST_LEVEL < level < _MOST_LEVEL else _bounded(level)
        low = _end(ordered, level, -1)
        self.low = low if low < 0.0 else 0.0
        level = self._above_level + _GAIN * (above - was_above)
        self._above_level = level = level if _LEAST_LEVEL < level < _MOST_LEVEL else _bounded(level)
        high = _end(ordered, level, 1)
        self.high = high if high > 0.0 else 0.0


def residual_of(actual_s: float, predicted_s: float, spread: float) -> float:
    """Say how far an outcome lies from its prediction, in spreads; what is no number lies as far off as can be."""
    if not (0.0 < predicted_s < math.inf and 0.0 <= actual_s < math.inf):
        return _MOST_RESIDUAL
    ratio = actual_s / predicted_s
    if not 0.0 < ratio < math.inf:
        return _MOST_RESIDUAL if ratio else -_MOST_RESIDUAL
    residual = math.log(ratio) / _scale(spread)
    return min(max(residual, -_MOST_RESIDUAL), _MOST_RESIDUAL)


def end_s(predicted_s: float, spread: float, end: float) -> float:
    """Place an end, in spreads, about a prediction; `residual_of` of the result is that end again."""
    log = end * _scale(spread)
    return predicted_s * _exp(log if log < _MOST_LOG else _MOST_LOG)


def ends_s(predicted_s: float, spread: float, low: float, high: float) -> tuple[float, float]:
    """Place both ends."""
    scale = _scale(spread)
    log = high * scale
    return predicted_s * _exp(low * scale), predicted_s * _exp(log if log < _MOST_LOG else _MOST_LOG)


def _scale(claimed: float) -> float:
    if claimed < _MOST_SPREAD:
        return claimed if claimed > MIN_SPREAD else MIN_SPREAD
    return _MOST_SPREAD if claimed >= _MOST_SPREAD else MIN_SPREAD  # what is no number claims nothing


def _bounded(level: float) -> float:
    return min(max(level, _LEAST_LEVEL), _MOST_LEVEL)


def _end(ordered: list[float], level: float, side: int) -> float:
    """Find the residual that a share `level` lies beyond, above (1) or below (-1), as of one more than there are."""
    count = len(ordered)
    rank = (count + 1) * (1.0 - level)  # from the other side
    if rank >= count:
        reach = (rank - count) * _REACH * max(ordered[-1] - ordered[0], _LEAST_RANGE)
        return ordered[-1] + reach if side > 0 else ordered[0] - reach
    k = int(rank)
    inner, outer = (ordered[k - 1], ordered[k]) if side > 0 else (ordered[count - k], ordered[count - k - 1])
    return inner + (rank - k) * (outer - inner)
