"""Two clusters that are given, beside each other: what each keeps, and how many times as much, draw by draw.

Owns the comparison of what is not searched for. Must not know who chose the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sim.cluster import ClusterSpec
from sim.plan import Interval, PlanQuestion
from sim.search.bounds import Bounds, Demand
from sim.search.estimate import Estimates
from sim.search.fixed import fixed_placement
from sim.search.goodput import Judge, Scenario, Simulate, resampled
from sim.search.intervals import Spread, Worlds, draws_of, goodput_interval, ratio
from sim.search.race import Found, Race
from sim.simulate import simulate

_NONE: Final = Interval(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Beside:
    """Goodput of either, and of the first over the second."""

    first: Interval
    second: Interval
    ratio: Interval | None  # None: one of them keeps the promise at no rate


def beside(question: PlanQuestion, first: ClusterSpec, second: ClusterSpec, *, run: Simulate = simulate) -> Beside:
    """Judge both with the requests, the promise and the errors of the question. Raises ConfigError: they do not fit."""
    scenario = Scenario(resampled(question.workload, question.seeds), question.targets)
    demand = Demand.of(question.workload, question.targets)
    race = Race(question, Judge(scenario, run), Bounds(demand), Estimates(demand), _unheard)
    worlds = Worlds(draws_of(scenario, groups=len(question.groups)), question.groups, scenario, run)

    def judged(cluster: ClusterSpec) -> tuple[float, Spread] | None:
        found = race.judged(fixed_placement(question, cluster))
        if found is None:
            return None
        return found.rate, worlds.spread(found, found.rate, ceiling=race.ceiling(found.placement))

    ours, other = judged(first), judged(second)
    return Beside(
        goodput_interval(ours[1], ours[0]) if ours else _NONE,
        goodput_interval(other[1], other[0]) if other else _NONE,
        ratio(ours[1], other[1], (ours[0], other[0])) if ours and other else None,
    )


def _unheard(best: Found | None) -> None:
    del best
