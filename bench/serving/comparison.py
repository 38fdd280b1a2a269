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
from numpy.typing import NDArray

from bench.serving.metrics import ClassTargets, targets_of
from bench.serving.statistics import Values
from bench.serving.timing import Timing
from sim.plan import Interval
from sim.workload import Ints

_DRAWS: Final = 300
_ENDS: Final = (0.05, 0.95)


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
    found = [
        _ratio(f"{label} {name}", "ms", sides, places, _quantile_of(column, q))
        for column, label in (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2el", "E2EL"))
        for name, q in (("median", 0.5), ("P90", 0.9), ("P99", 0.99))
    ]
    found[6:6] = [
        _ratio(f"ITL {name}", "ms", sides, places, _itl_quantile(q)) for name, q in (("median", 0.5), ("P99", 0.99))
    ]
    if targets:
        found.insert(0, _ratio("attainment", "", sides, places, lambda c, at: float(c.kept[at].mean()), True))
    found.append(_ratio("success", "", sides, places, lambda c, at: float(c.done[at].mean()), True))
    return tuple(found)


_Figure = Callable[[_Columns, Ints], float]


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


def _blocks(count: int, seed: int) -> tuple[Ints, ...]:
    """Draw the places of every resample; the first is the sample itself."""
    rng = np.random.default_rng([seed, 0xC03B])
    length = max(1, round(math.sqrt(count)))
    places = [np.arange(count)]
    for _ in range(_DRAWS if count else 0):
        begins = rng.integers(0, count, -(-count // length))
        places.append(((begins[:, None] + np.arange(length)) % count).reshape(-1)[:count])
    return tuple(places)


def _ratio(
    name: str,
    unit: str,
    sides: tuple[_Columns, _Columns],
    places: Sequence[Ints],
    figure: _Figure,
    more_is_better: bool = False,
) -> Ratio:
    drawn: list[float] = []
    first, second = (figure(side, places[0]) for side in sides)
    for at in places[1:]:
        below, above = (figure(side, at) for side in sides)
        drawn.append(above / below if below else math.nan)
    mid = second / first if first else math.nan
    known: NDArray[np.float64] = np.array([each for each in drawn if math.isfinite(each)])
    if not len(known) or math.isnan(mid):
        return Ratio(name, unit, first, second, Interval(math.nan, mid, math.nan), more_is_better)
    low, high = (float(end) for end in np.quantile(known, _ENDS))
    return Ratio(name, unit, first, second, Interval(min(low, mid), mid, max(high, mid)), more_is_better)


def _quantile_of(column: str, q: float) -> _Figure:
    def figure(columns: _Columns, at: Ints) -> float:
        values: Values = getattr(columns, column)[at]
        values = values[~np.isnan(values)]
        return float(np.quantile(values, q)) if len(values) else math.nan

    return figure


def _itl_quantile(q: float) -> _Figure:
    def figure(columns: _Columns, at: Ints) -> float:
        gaps = [columns.itl[i] for i in at.tolist()]
        values = np.concatenate(gaps) if gaps else np.zeros(0)
        return float(np.quantile(values, q)) if len(values) else math.nan

    return figure
