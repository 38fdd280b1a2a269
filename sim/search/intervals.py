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
from sim.search.goodput import BLOCK, FLOOR_STEPS, Judge, Scenario, Simulate, rate_of
from sim.search.placements import Placement
from sim.search.race import Found
from sim.workload import Floats, Workload

DRAWS = 20
_STRIDE = 8  # steps of the grid of rates, 4 %, between which attainment is taken as straight
_SEED = 20_240
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """One world: how far off the costs of each group are, in standard deviations, and what arrives."""

    prefill_z: tuple[float, ...]  # by group
    decode_z: tuple[float, ...]
    workload: Workload


def draws_of(scenario: Scenario, *, groups: int, count: int = DRAWS) -> tuple[Draw, ...]:
    """Draw worlds; equal arguments give equal ones. The seeds' workloads are resampled in turn."""
    rng = np.random.default_rng(_SEED)
    return tuple(
        Draw(
            tuple(rng.standard_normal(groups).tolist()),
            tuple(rng.standard_normal(groups).tolist()),
            scenario.workloads[i % len(scenario.workloads)].bootstrap(rng, BLOCK),
        )
        for i in range(count)
    )


def in_world(placement: Placement, groups: Sequence[DeviceGroup], draw: Draw) -> Placement:
    """Return the placement with its costs off as the draw says."""

    def off(pool: PoolSpec, group: int) -> PoolSpec:
        shape = groups[group].profile.shape(pool.tensor_parallel, pool.pipeline_parallel)
        prefill = math.exp(draw.prefill_z[group] * shape.prefill_error)
        decode = math.exp(draw.decode_z[group] * shape.decode_error)
        return replace(pool, cost=pool.cost.scaled(prefill=prefill, decode=decode))

    cluster = placement.cluster
    prefill = cluster.prefill and off(cluster.prefill, placement.group[0])
    return replace(
        placement, cluster=replace(cluster, decode=off(cluster.decode, placement.group[-1]), prefill=prefill)
    )


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """Goodput in every draw, and attainment at one rate; 0 goodput where no rate is kept."""

    goodput: Floats  # by draw
    attainment: Floats  # (draws, classes)


@dataclass(slots=True, eq=False)
class Worlds:
    """Judges placements in all draws."""

    draws: tuple[Draw, ...]
    groups: tuple[DeviceGroup, ...]
    scenario: Scenario
    run: Simulate
    simulated_requests: int = 0

    def spread(self, found: Found, rate: float) -> Spread:
        """Return how the goodput of a placement, and its attainment at `rate`, spread."""
        goodput, attainment = [], []
        for draw in self.draws:
            judge = Judge(Scenario((draw.workload,), self.scenario.targets), self.run)
            placement = in_world(found.placement, self.groups, draw)
            attainment.append(judge.attainment(placement, rate))
            goodput.append(_crossing(judge, placement, found.step))
            self.simulated_requests += judge.simulated_requests
        return Spread(np.array(goodput), np.array(attainment))


def _crossing(judge: Judge, placement: Placement, step: int) -> float:
    """Return the rate at which the worst class falls below its share, near `step`; 0: at none."""
    targets = judge.scenario.targets

    def margin(at: int) -> float:
        attained = judge.attainment(placement, rate_of(at))
        return min(a - t.attainment for a, t in zip(attained, targets, strict=True))

    here = margin(step)
    direction = 1 if here >= 0 else -1
    for tried in range(step + direction * _STRIDE, step + direction * FLOOR_STEPS, direction * _STRIDE):
        there = margin(tried)
        if (there >= 0) != (here >= 0):
            share = here / (here - there)
            return float(rate_of(step) * (rate_of(tried) / rate_of(step)) ** share)
        step, here = tried, there
    return 0.0 if direction < 0 else rate_of(step)


def interval(values: Floats, mid: float) -> Interval:
    """Return the 90 % interval of the draws about a figure of the undisturbed world, which it always holds."""
    low, high = np.quantile(values, (_LOW, _HIGH)).tolist()
    return Interval(min(low, mid), mid, max(high, mid))


def separate(a: Spread, b: Spread) -> bool:
    """Say whether the goodput of one exceeds that of the other in at least 95 of 100 draws.

    The draws are shared, so an error of the profile or an unlucky trace that hits both does not blur the comparison.
    """
    ahead = float(np.mean(a.goodput > b.goodput))
    behind = float(np.mean(a.goodput < b.goodput))
    return max(ahead, behind) >= _HIGH
