"""Two systems that were asked the same: ratios of their metrics, with intervals by a paired bootstrap.

Owns the statistics of pairs. Pure. Request i of one side is request i of the other: same lengths, same time. Blocks of
neighbouring requests are drawn again together and on both sides alike (circular block bootstrap, Politis and Romano,
1992), so that what both sides owe to the traffic cancels and bursts survive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.serving.metrics import ClassTargets, targets_of
from bench.serving.statistics import Values
from bench.serving.timing import Timing
from sim.plan import Interval
from sim.workload import Ints

_DRAWS: Final = 300
_ENDS: Final = (0.05, 0.95)
_QUANTILES: Final = (0.5, 0.9, 0.99)
_AT_A_TIME: Final = 1 << 21  # values


@dataclass(frozen=True, slots=True)
class Ratio:
    """One metric of both sides."""

    name: str
    unit: str
    first: float
    second: float
    ratio: Interval  # second over first; nan where there is nothing to divide by
    more_is_better: bool = False

    @property
    def verdict(self) -> str:
        """Say whether the second is better, worse, or not known to differ."""
        low, high = self.ratio.low, self.ratio.high
        if not (low > 1.0 or high < 1.0):  # nan too
            return "no difference seen"
        return "better" if (low > 1.0) == self.more_is_better else "worse"


@dataclass(frozen=True, slots=True)
class _Columns:
    """One side as arrays with an entry for each request; nan where there is no figure."""

    ttft: Values
    tpot: Values
    e2el: Values
    kept: Values
    done: Values
    itl: tuple[Values, ...]


def compare(
    first: Sequence[Timing], second: Sequence[Timing], targets: ClassTargets, *, seed: int = 0
) -> tuple[Ratio, ...]:
    """Divide each metric of `second` by that of `first`; both in the order of the same trace.

    Raises ValueError when they are not equally long.
    """
    if len(first) != len(second):
        raise ValueError("both sides must have been asked the same requests")
    sides = _columns(first, targets), _columns(second, targets)
    places = _blocks(len(first), seed)

    def times(column: str, label: str) -> list[Ratio]:
        names = [f"{label} {name}" for name in ("median", "P90", "P99")]
        return _ratios(names, "ms", sides, places, lambda side, at: _quantiles(getattr(side, column), at))

    def share(name: str, column: str) -> list[Ratio]:
        def mean(side: _Columns, at: Ints) -> Values:
            values: Values = getattr(side, column)[at].mean(axis=1)
            return values[:, None]

        return _ratios([name], "", sides, places, mean, more_is_better=True)

    gaps = _ratios(["ITL median", "ITL P90", "ITL P99"], "ms", sides, places, _gap_quantiles)
    return (
        *(share("attainment", "kept") if targets else ()),
        *times("ttft", "TTFT"),
        *times("tpot", "TPOT"),
        *gaps,
        *times("e2el", "E2EL"),
        *share("success", "done"),
    )


_Figures = Callable[[_Columns, Ints], Values]  # of places, (draws, requests), to figures, (draws, names)


def _columns(timings: Sequence[Timing], targets: ClassTargets) -> _Columns:
    def column(value: Callable[[Timing], float]) -> Values:
        return np.array([value(t) if t.is_complete else math.nan for t in timings])

    return _Columns(
        ttft=column(lambda t: t.ttft_ms),
        tpot=column(lambda t: t.tpot_ms if t.output_tokens > 1 else math.nan),
        e2el=column(lambda t: t.e2el_ms),
        kept=np.array([_is_kept(t, targets) for t in timings], np.float64),
        done=np.array([t.is_complete for t in timings], np.float64),
        itl=tuple(np.diff(np.frombuffer(t.tokens_s)) * 1e3 if t.is_complete else np.zeros(0) for t in timings),
    )


def _is_kept(timing: Timing, targets: ClassTargets) -> bool:
    found = targets_of(timing, targets)
    return timing.is_complete if found is None else found.met_by(timing)


def _blocks(count: int, seed: int) -> Ints:
    """Draw the places of every resample, (draws, count); the first is the sample itself."""
    rng = np.random.default_rng([seed, 0xC03B])
    length = max(1, round(math.sqrt(count)))
    begins = rng.integers(0, max(1, count), (_DRAWS, -(-count // length)))
    drawn = ((begins[:, :, None] + np.arange(length)) % max(1, count)).reshape(_DRAWS, -1)[:, :count]
    return np.concatenate([np.arange(count)[None, :], drawn])


def _ratios(
    names: Sequence[str],
    unit: str,
    sides: tuple[_Columns, _Columns],
    places: Ints,
    figures: _Figures,
    more_is_better: bool = False,
) -> list[Ratio]:
    below, above = (np.concatenate([figures(side, places[rows]) for rows in _slices(places)]) for side in sides)
    found = []
    for number, name in enumerate(names):
        first, second = float(below[0, number]), float(above[0, number])
        ratio = _interval(below[:, number], above[:, number])
        found.append(Ratio(name, unit, first, second, ratio, more_is_better))
    return found


def _slices(places: Ints) -> list[slice]:
    """Take so many draws at a time that they fit into little memory."""
    step = max(1, _AT_A_TIME // max(1, places.shape[1]))
    return [slice(begin, begin + step) for begin in range(0, len(places), step)]


def _interval(below: Values, above: Values) -> Interval:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = above / below
    mid, drawn = float(ratios[0]), ratios[1:]
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or not math.isfinite(mid):
        return Interval(math.nan, math.nan, math.nan)
    low, high = (float(end) for end in np.quantile(drawn, _ENDS))
    return Interval(min(low, mid), mid, max(high, mid))


def _quantiles(column: Values, at: Ints) -> Values:
    if not np.isnan(column).any():
        found: Values = np.quantile(column[at], _QUANTILES, axis=1).T
        return found
    return np.array([_of_known(column[row]) for row in at])


def _gap_quantiles(side: _Columns, at: Ints) -> Values:
    return np.array([_of_known(np.concatenate([side.itl[i] for i in row])) for row in at.tolist()])


def _of_known(values: Values) -> Values:
    known = values[~np.isnan(values)]
    found: Values = np.quantile(known, _QUANTILES) if len(known) else np.full(len(_QUANTILES), math.nan)
    return found
