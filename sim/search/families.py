"""The best one-pool and the best disaggregated placement within each budget.

Owns the order of budgets. They rise, and each starts from the best of the last, so that more devices never give less: a
plan may leave devices idle. Must not know intervals or verdicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sim.cluster import Mode
from sim.plan import PlanQuestion
from sim.search.goodput import step_below
from sim.search.placements import (
    EVERY_SPLIT_UP_TO,
    ONE_POOL_MODES,
    Fit,
    Placement,
    fits_of,
    levels,
    one_pools,
    size_pairs,
    split,
    splits,
)
from sim.search.race import Found, Race

_NEAR = 48  # steps, a fifth: what a search in haste may miss
_AROUND = (0.6, 0.75, 0.87, 1.0, 1.15, 1.33, 1.6)  # times the analytic number of decode workers


@dataclass(frozen=True, slots=True)
class Bests:
    """The best of each family that costs at most `price`."""

    price: float
    one_pool: Found | None = None
    disaggregated: Found | None = None

    @property
    def best(self) -> Found | None:
        """The better of both; one pool when they are equal."""
        if self.one_pool is None or self.disaggregated is None:
            return self.one_pool or self.disaggregated
        return self.one_pool if self.one_pool.step >= self.disaggregated.step else self.disaggregated

    def reach(self, step: int) -> bool:
        """Say whether the better of both keeps a step of rate."""
        return self.best is not None and self.best.step >= step


def climb(race: Race) -> Iterator[Bests]:
    """Yield the bests of one budget after another, up to all devices or the cheapest that carries the rate.

    A budget on the way is searched in haste; in full the last one, and one whose best is near the rate.
    """
    question = race.question
    fits, budgets = fits_of(question), levels(question)
    wanted = None if question.rate is None else step_below(question.rate)
    bests = Bests(0.0)
    for price in budgets:
        below, bests = bests, within(race, fits, price, bests, thorough=price == budgets[-1])
        if wanted is not None and bests.reach(wanted - _NEAR) and not bests.reach(wanted) and price != budgets[-1]:
            bests = within(race, fits, price, bests, thorough=True)
        if wanted is not None and bests.reach(wanted):
            yield _cheapest(race, fits, below, bests, wanted)
            return
        yield bests


def _cheapest(race: Race, fits: tuple[Fit, ...], below: Bests, enough: Bests, wanted: int) -> Bests:
    """Halve the budget between one that is too small and one that is enough, down to one device of the cheapest."""
    smallest = min(group.price_per_hour for group in race.question.groups)
    while enough.price - below.price > smallest * (1 + 1e-9):
        middle = within(race, fits, (below.price + enough.price) / 2, below, thorough=True)
        if middle.reach(wanted):
            enough = middle
        else:
            below = middle
    return within(race, fits, enough.price, below, thorough=True)


def within(race: Race, fits: tuple[Fit, ...], price: float, below: Bests, *, thorough: bool) -> Bests:
    """Return the bests of a budget, given those of a smaller one; in haste unless `thorough`.

    A thorough search lists what the smaller budgets hold too, for those may have been searched in haste.
    """
    question = race.question
    above = 0.0 if thorough else below.price
    found = race.best(one_pools(question, fits, price, above=above), below.one_pool, thorough=thorough)
    one_pool = race.confirmed(found, below.one_pool, thorough=thorough)
    disaggregated = below.disaggregated
    if not ONE_POOL_MODES.issuperset(question.modes):
        boards = [Board(question, mode, pair, price, above) for mode, pair in _boards(question, fits)]
        opening = [placement for board in boards for placement in board.opening(race)]
        found = race.best(opening, disaggregated, thorough=thorough)
        for board in boards:
            found = board.climbed(race, found)
        disaggregated = race.confirmed(found, disaggregated, thorough=thorough)
    return Bests(price, one_pool, disaggregated)


def _boards(question: PlanQuestion, fits: tuple[Fit, ...]) -> Iterator[tuple[Mode, tuple[Fit, Fit]]]:
    for mode in question.modes:
        if mode not in ONE_POOL_MODES:
            yield from ((mode, pair) for pair in size_pairs(question, fits))


class Board:
    """All splits of one budget for one mode and pair of sizes, in order of decode workers."""

    def __init__(self, question: PlanQuestion, mode: Mode, pair: tuple[Fit, Fit], price: float, above: float) -> None:
        self._question, self._mode, self._pair = question, mode, pair
        self._splits = splits(question, pair, price, above=above)

    def opening(self, race: Race) -> Iterator[Placement]:
        """List all splits when they are few, else some around the analytic optimum."""
        places = range(len(self._splits))
        if len(places) <= EVERY_SPLIT_UP_TO:
            chosen = set(places)
        else:
            middle = self._balanced(race)
            chosen = {min(max(round(middle * factor), 0), len(places) - 1) for factor in _AROUND}
        for place in sorted(chosen):
            yield from self._at(place)

    def climbed(self, race: Race, best: Found | None) -> Found | None:
        """Walk from `best`, when it is of this board, to better splits, with strides that halve."""
        stride = len(self._splits) // 16
        while stride:
            place = self._place_of(best)
            if place is None:
                return best
            nearby = (p for at in (place - stride, place + stride) for p in self._at(at))
            better = race.nearby(nearby, best)
            if better is best:
                stride //= 2
            best = better
        return best

    def _at(self, place: int) -> Iterator[Placement]:
        if 0 <= place < len(self._splits):
            yield from split(self._question, self._mode, self._pair, *self._splits[place])

    def _place_of(self, best: Found | None) -> int | None:
        if best is None or best.placement.cluster.prefill is None:
            return None
        cluster, prefill = best.placement.cluster, best.placement.cluster.prefill
        first, second = (fit.shape for fit in self._pair)
        sizes = tuple((p.tensor_parallel, p.pipeline_parallel) for p in (prefill, cluster.decode, first, second))
        if cluster.mode is not self._mode or sizes[:2] != sizes[2:]:
            return None
        here = (prefill.replicas, cluster.decode.replicas)
        return self._splits.index(here) if here in self._splits else None

    def _balanced(self, race: Race) -> int:
        """Find the split at which both pools are estimated to carry the same rate (DistServe, Algorithm 1)."""

        def gap(place: int) -> float:
            placement = next(self._at(place), None)
            return float("inf") if placement is None else race.estimates.imbalance(placement.cluster)

        places = range(0, len(self._splits), max(1, len(self._splits) // 64))
        return min(places, key=gap)
