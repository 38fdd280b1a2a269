"""Whether a cluster keeps the promise at a rate, and the highest rate at which it does.

Owns the criterion (joint attainment over all offered requests after a warm-up, over all seeds) and the grid of rates.
Every placement meets the same requests at the same rate (common random numbers). Must not know which placements are
compared or why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from sim.cluster import ClusterSpec, PoolSpec
from sim.outcome import Outcome, Target
from sim.search.crossing import highest_kept
from sim.search.placements import Placement
from sim.simulate import simulate
from sim.workload import Workload

RESOLUTION = 0.005  # rates are tried on the grid (1 + RESOLUTION) ** step: goodput is exact to 0.5 %, never above
WARM_UP_SHARE = 0.05  # of the requests: they meet an empty cluster, so they do not count
BLOCK = 50  # requests that a resampled trace keeps together, so that bursts survive
# The part of a long workload on which placements are compared; the winner meets all of it.
_ENOUGH_REQUESTS, _ENOUGH_PER_GPU = 3000, 100  # whichever is more
_SLICE_GPUS = 128  # of a larger cluster that much is compared, at its share of the rate; the winner is met whole
_TOP_STEP = 13_000  # 1e28 requests per second: beyond any bound


class Simulate(Protocol):
    """What judges a cluster; sim.simulate.simulate but in tests."""

    def __call__(
        self, cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0
    ) -> Outcome:
        """Run the workload."""
        ...


def rate_of(step: int) -> float:
    """Return requests per second at a step of the grid."""
    return float((1 + RESOLUTION) ** step)


def step_below(rate: float) -> int:
    """Return the highest step of the grid that is not above `rate`, which is above 0."""
    if rate >= rate_of(_TOP_STEP):
        return _TOP_STEP
    return math.floor(math.log(rate) / math.log1p(RESOLUTION) + 1e-9)


def resampled(workload: Workload, seeds: Sequence[int]) -> tuple[Workload, ...]:
    """Return the workload itself for the first seed and a block bootstrap of it for each other one."""
    drawn = (workload.bootstrap(np.random.default_rng(seed), BLOCK) for seed in seeds[1:])
    return (workload, *drawn)


def twice(workload: Workload) -> Workload:
    """Return the workload followed by itself; the second pass shares no prefix with the first."""
    gap_s = 1.0 / workload.rate if math.isfinite(workload.rate) else 0.0
    shift_s = float(workload.arrived_s[-1]) + gap_s
    again = replace(
        workload,
        arrived_s=np.concatenate((workload.arrived_s, workload.arrived_s + shift_s)),
        prompt_tokens=np.tile(workload.prompt_tokens, 2),
        output_tokens=np.tile(workload.output_tokens, 2),
        slo_class=np.tile(workload.slo_class, 2),
    )
    if not len(workload.prefix_start):
        return again
    new_ids = workload.prefix_ids + (int(workload.prefix_ids.max(initial=-1)) + 1)
    starts = np.concatenate((workload.prefix_start[:-1], workload.prefix_start + workload.prefix_start[-1]))
    return replace(again, prefix_start=starts, prefix_ids=np.concatenate((workload.prefix_ids, new_ids)))


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """The same for every cluster: requests by seed, and the promise."""

    workloads: tuple[Workload, ...]  # at least one
    targets: tuple[Target, ...]


@dataclass(slots=True, eq=False)
class Judge:
    """Simulates placements under one scenario, and counts what that took."""

    scenario: Scenario
    run: Simulate = simulate
    simulated_requests: int = 0
    _attained: dict[tuple[Placement, int, int, int, bool], tuple[float, ...]] = field(default_factory=dict)
    _parts: dict[tuple[int, int], Workload] = field(default_factory=dict)

    def attainment(self, placement: Placement, rate: float, *, whole: bool = True) -> tuple[float, ...]:
        """Return attainment by class at `rate`, mean over the seeds; not `whole`: as in `margin`."""
        step = step_below(rate)
        sizes = [self._size(placement, seed, whole=whole) for seed in range(len(self.scenario.workloads))]
        if rate_of(step) == rate:
            attained = [self._memoised(placement, seed, size, step, whole) for seed, size in enumerate(sizes)]
        else:
            attained = [self._once(placement, seed, size, rate, whole) for seed, size in enumerate(sizes)]
        return tuple(np.mean(attained, axis=0).tolist())

    def margin(self, placement: Placement, step: int, *, whole: bool) -> float:
        """Return by how much the class that is worst off exceeds its share, in the mean over all seeds.

        Not `whole`: on the part of a long workload and the slice of a large cluster that are enough to compare
        placements by.
        """
        sizes = [self._size(placement, seed, whole=whole) for seed in range(len(self.scenario.workloads))]
        attained = [self._memoised(placement, seed, size, step, whole) for seed, size in enumerate(sizes)]
        return self._worst(np.mean(attained, axis=0).tolist())

    def quick_margin(self, placement: Placement, step: int) -> float:
        """Return the same for the first seed alone, and for no more requests than are enough."""
        return self._worst(self._memoised(placement, 0, self._size(placement, 0, whole=False), step, False))

    def glimpse(self, placement: Placement, step: int) -> tuple[float, ...]:
        """Return attainment of the first third of those requests: cheap, to compare placements by."""
        size = max(1, self._size(placement, 0, whole=False) // 3)
        return self._memoised(placement, 0, size, step, False)

    def sustains(self, placement: Placement, step: int, *, whole: bool = True) -> bool:
        """Say whether the share is kept in a second pass of the first workload, begun where the first one ends.

        A queue that grows through the first pass, or decode batches not yet full in it, show in the second.
        """
        size = self._size(placement, 0, whole=whole)
        sliced = not whole and _slices(placement) > 1
        outcome = self._simulate(placement, twice(self._part(0, size)), rate_of(step), 0, sliced)
        attained = outcome.attainment(self.scenario.targets, skip=size)
        # Half the misses more than allowed: a single pass is noisy, a growing queue loses far more.
        allowed = (1.5 * (1 - target.attainment) for target in self.scenario.targets)
        return all(1 - share <= missed + 1e-9 for share, missed in zip(attained, allowed, strict=True))

    def highest_step(
        self, placement: Placement, *, hint: float, ceiling: float = math.inf, above: int | None = None, width: int = 1
    ) -> int | None:
        """Find the highest step that the first seed keeps up to `ceiling`, from `hint` (requests per second).

        Returns None when there is none above `above`, at the cost of one try, or none at all. What wins has still to be
        confirmed. `width`: see crossing.highest_kept.
        """
        return highest_kept(
            lambda step: self.quick_margin(placement, step),
            step_below(hint),
            ceiling=step_below(ceiling),
            above=above,
            width=width,
        )

    def highest_confirmed(self, placement: Placement, near: int, *, ceiling: float, above: int) -> int | None:
        """Find the highest step above `above` that all seeds and a second pass keep, from the guess `near`."""
        step = highest_kept(
            lambda step: self.margin(placement, step, whole=True),
            max(near, above + 1),
            ceiling=step_below(ceiling),
            above=above,
            stride=2,
        )
        return None if step is None else self.confirmed_step(placement, step, above=above)

    def confirmed_step(self, placement: Placement, step: int, *, above: int, whole: bool = True) -> int | None:
        """Return a step up to `step` that all seeds and a second pass confirm; None: none is found above `above`.

        Strides down grow by one each time, so that k tries reach k * k / 2 steps down and the last stride is what may
        be missed.
        """
        stride = 1
        while step > above and not self._confirms(placement, step, whole=whole):
            step, stride = step - stride, stride + 1
        return step if step > above else None

    def _confirms(self, placement: Placement, step: int, *, whole: bool) -> bool:
        return self.margin(placement, step, whole=whole) >= -1e-9 and self.sustains(placement, step, whole=whole)

    def _worst(self, attained: Sequence[float]) -> float:
        return min(a - t.attainment for a, t in zip(attained, self.scenario.targets, strict=True))

    def _size(self, placement: Placement, seed: int, *, whole: bool) -> int:
        size = len(self.scenario.workloads[seed])
        enough = max(_ENOUGH_REQUESTS, _ENOUGH_PER_GPU * placement.unit.gpus // _slices(placement))
        return size if whole else min(size, enough)

    def _part(self, seed: int, size: int) -> Workload:
        workload = self.scenario.workloads[seed]
        if size == len(workload):
            return workload
        if (seed, size) not in self._parts:
            self._parts[seed, size] = workload.part(0, size)
        return self._parts[seed, size]

    def _memoised(self, placement: Placement, seed: int, size: int, step: int, whole: bool) -> tuple[float, ...]:
        key = (placement, seed, size, step, not whole and _slices(placement) > 1)
        if key not in self._attained:
            self._attained[key] = self._once(placement, seed, size, rate_of(step), whole)
        return self._attained[key]

    def _once(self, placement: Placement, seed: int, size: int, rate: float, whole: bool) -> tuple[float, ...]:
        sliced = not whole and _slices(placement) > 1
        outcome = self._simulate(placement, self._part(seed, size), rate, seed, sliced)
        return outcome.attainment(self.scenario.targets, skip=int(WARM_UP_SHARE * size))

    def _simulate(self, placement: Placement, workload: Workload, rate: float, seed: int, sliced: bool) -> Outcome:
        self.simulated_requests += len(workload)
        cluster = slice_of(placement) if sliced else placement.unit
        offered = workload.at_rate(rate * cluster.gpus / placement.cluster.gpus)
        return self.run(cluster, offered, self.scenario.targets, seed=seed)


def _slices(placement: Placement) -> int:
    return max(1, placement.unit.gpus // _SLICE_GPUS)


def slice_of(placement: Placement) -> ClusterSpec:
    """Return about _SLICE_GPUS of a large unit, with its pools in proportion as near as whole workers allow."""
    unit, parts = placement.unit, _slices(placement)

    def part(pool: PoolSpec) -> PoolSpec:
        return replace(pool, replicas=max(1, round(pool.replicas / parts)))

    return replace(unit, decode=part(unit.decode), prefill=unit.prefill and part(unit.prefill))
