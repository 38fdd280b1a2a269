"""How sure a figure is: fit errors of the profile x resampled traces, over draws that all placements share.

Owns the draws and their quantiles. In a draw every step cost of a device group is off by one factor for prompts and one
for decode steps (lognormal, with the profile's own standard deviations: an error of the fit does not average out over
requests), and the requests are a block bootstrap. Must not know how placements were found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sim.cluster import PoolSpec
from sim.plan import DeviceGroup, Interval
from sim.search.crossing import STRIDE, highest_kept
from sim.search.goodput import BLOCK, Judge, Scenario, Simulate, rate_of, step_below
from sim.search.placements import Placement
from sim.search.race import Found
from sim.workload import Floats, Workload

DRAWS, FEWER_DRAWS = 20, 10
_LONG = 5_000  # requests from which on fewer draws must do
_SEED = 20_240
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """One world: how far off the costs of each group are, in standard deviations, and what arrives."""

    prefill_z: tuple[float, ...]  # by group
    decode_z: tuple[float, ...]
    workload: Workload


def draws_of(scenario: Scenario, *, groups: int, count: int | None = None) -> tuple[Draw, ...]:
    """Draw worlds; equal arguments give equal ones. The seeds' workloads are resampled in turn."""
    count = count or (DRAWS if len(scenario.workloads[0]) < _LONG else FEWER_DRAWS)
    rng = np.random.default_rng(_SEED)
    return tuple(
        Draw(
            tuple(rng.standard_normal(groups).tolist()),
            tuple(rng.standard_normal(groups).tolist()),
            scenario.workloads[i % len(scenario.workloads)].bootstrap(rng, BLOCK),
        )
        for i in range(count)
    )


def in_world(placement: Placement, groups: Sequence[DeviceGroup], draw: Draw) -> tuple[Placement, float]:
    """Return the placement with its costs off as the draw says, and how many times as fast its fastest part is."""
    speeds: list[float] = []

    def off(pool: PoolSpec, group: int) -> PoolSpec:
        shape = groups[group].profile.shape(pool.tensor_parallel, pool.pipeline_parallel)
        prefill = math.exp(draw.prefill_z[group] * shape.prefill_error)
        decode = math.exp(draw.decode_z[group] * shape.decode_error)
        speeds.extend((1 / prefill, 1 / decode))
        return replace(pool, cost=pool.cost.scaled(prefill=prefill, decode=decode))

    cluster = placement.cluster
    prefill = cluster.prefill and off(cluster.prefill, placement.group[0])
    decode = off(cluster.decode, placement.group[-1])
    return replace(placement, cluster=replace(cluster, decode=decode, prefill=prefill)), max(speeds)


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Goodput in every draw over that in the undisturbed world, and attainment at one rate.

    Both goodputs are crossings of the first pass alone, so that the strictness of a second pass does not count as luck;
    of a long workload and a large cluster the part is run that placements are compared by.
    """

    goodput: Floats  # by draw; 0 where no rate is kept
    undisturbed: float
    attainment: Floats  # (draws, classes)


@dataclass(slots=True, eq=False)
class Worlds:
    """Judges placements in all draws."""

    draws: tuple[Draw, ...]
    groups: tuple[DeviceGroup, ...]
    scenario: Scenario
    run: Simulate
    simulated_requests: int = 0

    def spread(self, found: Found, rate: float, *, ceiling: float, roughly: bool = False) -> Spread:
        """Return how the goodput of a placement, and its attainment at `rate`, spread.

        `ceiling`: the rate above which the undisturbed placement cannot last. `roughly`: in FEWER_DRAWS.
        """
        goodput, attainment = [], []
        for draw in self.draws[: FEWER_DRAWS if roughly else None]:
            judge = Judge(Scenario((draw.workload,), self.scenario.targets), self.run)
            placement, speed = in_world(found.placement, self.groups, draw)
            attainment.append(judge.attainment(placement, rate, whole=False))
            goodput.append(self._crossing(judge, placement, found.step, ceiling * speed))
        judge = Judge(self.scenario, self.run)
        undisturbed = self._crossing(judge, found.placement, found.step, ceiling)
        return Spread(np.array(goodput), undisturbed, np.array(attainment))

    def _crossing(self, judge: Judge, placement: Placement, step: int, ceiling: float) -> float:
        """Return the rate at which the worst class falls below its share, from `step` on; 0: at none."""
        margins: dict[int, float] = {}

        def margin(at: int) -> float:
            margins[at] = judge.margin(placement, at, whole=False)
            return margins[at]

        kept = highest_kept(margin, step, ceiling=step_below(ceiling), width=STRIDE)
        self.simulated_requests += judge.simulated_requests
        if kept is None:
            return 0.0
        failed = min((at for at in margins if at > kept), default=None)
        if failed is None:
            return rate_of(kept)
        share = margins[kept] / (margins[kept] - margins[failed])  # attainment is taken as straight in between
        return float(rate_of(kept) * (rate_of(failed) / rate_of(kept)) ** max(0.0, share))


def interval(values: Floats, mid: float) -> Interval:
    """Return the 90 % interval of the draws about a figure of the undisturbed world, which it always holds."""
    low, high = np.quantile(values, (_LOW, _HIGH)).tolist()
    return Interval(min(low, mid), mid, max(high, mid))


def goodput_interval(spread: Spread, mid: float) -> Interval:
    """Return the 90 % interval of a goodput that differs from the undisturbed one in the draws as `spread` says."""
    if spread.undisturbed <= 0:
        return Interval(mid, mid, mid)
    return interval(spread.goodput * (mid / spread.undisturbed), mid)


def ratio(above: Spread, below: Spread, rates: tuple[float, float]) -> Interval:
    """Return how many times as much one keeps as the other, with the 90 % interval of the draws that they share.

    An error of the profile or an unlucky trace that hits both does not blur the comparison. `rates`: what both keep in
    the undisturbed world, perhaps by a closer look than the search's; the draws spread about their ratio as they do
    about the search's. A draw in which neither keeps anything tells nothing: 1.
    """
    mid, seen = _times(*rates), _times(above.undisturbed, below.undisturbed)
    moved = mid / seen if 0 < seen < math.inf and 0 < mid < math.inf else 1.0
    shared = zip(above.goodput.tolist(), below.goodput.tolist(), strict=False)  # one may have fewer
    drawn = [_times(ours * moved, other) for ours, other in shared]
    low, high = np.quantile(drawn, (_LOW, _HIGH), method="nearest").tolist()  # in between is nothing beside infinity
    return Interval(min(low, mid), mid, max(high, mid))


def _times(ours: float, other: float) -> float:
    if other > 0:
        return ours / other
    return math.inf if ours > 0 else 1.0
