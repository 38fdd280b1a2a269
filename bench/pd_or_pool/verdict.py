"""Goodput from what was measured at a few rates, how sure it is, and who keeps more.

Owns the estimate and the words of the verdict. Pure. Request i of one system is request i of the other, so blocks of
neighbours are drawn again on both sides alike (paired circular block bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sim.plan import Interval

APART, POOL, UNCLEAR = "P/D", "one pool", "no clear difference"
_DRAWS: Final = 400
_ENDS: Final = (0.05, 0.95)
_SURE: Final = 0.95

Kept = Mapping[float, NDArray[np.bool_]]  # by rate, rising: which requests met both targets, in order of time


@dataclass(frozen=True, slots=True)
class Compared:
    """Both systems under one promise; goodput 0: not even the lowest rate is kept."""

    apart: Interval
    pool: Interval
    verdict: str
    top: float  # the highest rate that was offered: a goodput there may be more


def compare(apart: Kept, pool: Kept, promised: float, *, seed: int = 0) -> Compared:
    """Estimate both goodputs, and say who keeps more in at least 95 of 100 resamples.

    Raises ValueError when the two were not asked the same.
    """
    if [(rate, len(kept)) for rate, kept in apart.items()] != [(rate, len(kept)) for rate, kept in pool.items()]:
        raise ValueError("both systems must have been asked the same requests at the same rates")
    rng = np.random.default_rng([seed, 0x9D0])
    drawn: list[tuple[float, float]] = []
    for _ in range(_DRAWS):
        places = {rate: _blocks(len(kept), rng) for rate, kept in apart.items()}
        drawn.append((_resampled(apart, places, promised), _resampled(pool, places, promised)))
    ours, other = np.array(drawn).T
    if float(np.mean(ours > other)) >= _SURE:
        verdict = APART
    elif float(np.mean(ours < other)) >= _SURE:
        verdict = POOL
    else:
        verdict = UNCLEAR
    return Compared(
        _interval(ours, goodput(_shares(apart), promised)),
        _interval(other, goodput(_shares(pool), promised)),
        verdict,
        max(apart),
    )


def goodput(shares: Mapping[float, float], promised: float) -> float:
    """Return the rate at which attainment, straight between the rates, first falls below what was promised.

    0 when it does so at the lowest rate already; the highest rate when it never does.
    """
    points = sorted(shares.items())
    before: tuple[float, float] | None = None
    for rate, share in points:
        if share < promised:
            if before is None:
                return 0.0
            return before[0] + (rate - before[0]) * (before[1] - promised) / (before[1] - share)
        before = (rate, share)
    return points[-1][0]


def agree(first: str, second: str) -> str:
    """Say how two verdicts go together: doubt of one contradicts nothing."""
    if first == second:
        return "yes"
    return "neither contradicts" if UNCLEAR in (first, second) else "no"


def _shares(kept: Kept) -> dict[float, float]:
    return {rate: float(each.mean()) for rate, each in kept.items()}


def _resampled(kept: Kept, places: Mapping[float, NDArray[np.int64]], promised: float) -> float:
    return goodput({rate: float(each[places[rate]].mean()) for rate, each in kept.items()}, promised)


def _blocks(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    length = max(1, round(math.sqrt(count)))
    begins = rng.integers(0, count, -(-count // length))
    return ((begins[:, None] + np.arange(length)) % count).reshape(-1)[:count]


def _interval(values: NDArray[np.float64], mid: float) -> Interval:
    low, high = (float(end) for end in np.quantile(values, _ENDS))
    return Interval(min(low, mid), mid, max(high, mid))


def merged(parts: Sequence[Kept]) -> dict[float, NDArray[np.bool_]]:
    """Put the turns of one system together, rate by rate."""
    return {rate: np.concatenate([part[rate] for part in parts]) for rate in sorted(parts[0])}
