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

from sim.cluster import ClusterSpec
from sim.outcome import Outcome, Target
from sim.search.placements import Placement
from sim.simulate import simulate
from sim.workload import Workload

RESOLUTION = 0.005  # rates are tried on the grid (1 + RESOLUTION) ** step: goodput is exact to 0.5 %, never above
_STRIDE = 8  # steps, 4 %
WARM_UP_SHARE = 0.05  # of the requests: they meet an empty cluster, so they do not count
CLEAR = 0.03  # attainment this far from the share needs no further seed
BLOCK = 50  # requests that a resampled trace keeps together, so that bursts survive
FLOOR_STEPS = 1400  # below a hint, a rate 1,000 times lower counts as none


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
    """Return the highest step of the grid that is not above `rate`."""
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
    _attained: dict[tuple[Placement, int, int], tuple[float, ...]] = field(default_factory=dict)  # by seed, step
    _glimpsed: dict[tuple[Placement, int], tuple[float, ...]] = field(default_factory=dict)
    _two_passes: Workload = field(init=False)
    _third: Workload = field(init=False)

    def __post_init__(self) -> None:
        first = self.scenario.workloads[0]
        self._two_passes = twice(first)
        self._third = first.part(0, max(1, len(first) // 3))

    def attainment(self, placement: Placement, rate: float) -> tuple[float, ...]:
        """Return attainment by class at `rate`, mean over the seeds."""
        seeds = range(len(self.scenario.workloads))
        step = step_below(rate)
        if rate_of(step) == rate:
            return tuple(np.mean([self._memoised(placement, seed, step) for seed in seeds], axis=0).tolist())
        return tuple(np.mean([self._once(placement, seed, rate) for seed in seeds], axis=0).tolist())

    def keeps(self, placement: Placement, step: int) -> bool:
        """Say whether every class has its share at a step of the grid, by a sequential test over the seeds.

        The mean so far decides when it is CLEAR of the share, else that of all seeds does; equal questions get equal
        answers. What wins is confirmed with all seeds.
        """
        shares = np.array([target.attainment for target in self.scenario.targets])
        attained = np.zeros(len(shares))
        for seed in range(len(self.scenario.workloads)):
            attained += self._memoised(placement, seed, step)
            gap = attained / (seed + 1) - shares
            if np.any(gap < -CLEAR):
                return False
            # Nobody is more than always in time: a share near 1 is clear when no request missed.
            if np.all(gap >= np.minimum(CLEAR, 1 - shares)):
                return True
        return bool(np.all(gap >= -1e-9))

    def confirms(self, placement: Placement, step: int) -> bool:
        """Say whether every class has its share in the mean over all seeds, and in a second pass."""
        attained = self.attainment(placement, rate_of(step))
        kept = all(a >= t.attainment - 1e-9 for a, t in zip(attained, self.scenario.targets, strict=True))
        return kept and self.sustains(placement, step)

    def sustains(self, placement: Placement, step: int) -> bool:
        """Say whether the share is kept in a second pass of the first workload, begun where the first one ends.

        A queue that grows through the first pass, or decode batches not yet full in it, show in the second.
        """
        outcome = self._simulate(placement, self._two_passes, rate_of(step), 0)
        attained = outcome.attainment(self.scenario.targets, skip=len(self._two_passes) // 2)
        # Half the misses more than allowed: a single pass is noisy, a growing queue loses far more.
        allowed = (1.5 * (1 - target.attainment) for target in self.scenario.targets)
        return all(1 - share <= missed + 1e-9 for share, missed in zip(attained, allowed, strict=True))

    def glimpse(self, placement: Placement, step: int) -> tuple[float, ...]:
        """Return attainment of the first third of the first seed's requests: cheap, to compare placements by."""
        key = (placement, step)
        if key not in self._glimpsed:
            outcome = self._simulate(placement, self._third, rate_of(step), 0)
            self._glimpsed[key] = outcome.attainment(self.scenario.targets)
        return self._glimpsed[key]

    def highest_step(self, placement: Placement, *, hint: float, above: int | None = None) -> int | None:
        """Find the highest step of the grid that is kept, from `hint` (requests per second).

        Returns None when there is none above `above`, at the cost of one try, or none at all.
        """
        near = step_below(hint)
        if above is None:
            low = self._first_kept(placement, near)
        else:
            low = above + 1 if self.keeps(placement, above + 1) else None
        return None if low is None else self._highest_above(placement, low, near)

    def confirmed_step(self, placement: Placement, step: int, *, above: int) -> int | None:
        """Return a step up to `step` that all seeds and a second pass confirm; None: none is found above `above`.

        Strides down grow by one each time, so that k tries reach k * k / 2 steps down and the last stride is what may
        be missed.
        """
        stride = 1
        while step > above and not self.confirms(placement, step):
            step, stride = step - stride, stride + 1
        return step if step > above else None

    def _first_kept(self, placement: Placement, near: int) -> int | None:
        """Return a kept step near a guess, in strides down from it that double."""
        step, stride = near, _STRIDE
        while not self.keeps(placement, step):
            if near - step > FLOOR_STEPS:
                return None
            step, stride = step - stride, stride * 2
        return step

    def _highest_above(self, placement: Placement, low: int, near: int) -> int:
        """Return the highest kept step above the kept `low`: strides from the guess until one fails, then halves."""
        high, stride = max(near, low + 1), _STRIDE
        if self.keeps(placement, high):
            while self.keeps(placement, high):
                low, high, stride = high, high + stride, stride * 2
        else:
            while (step := high - stride) > low and not self.keeps(placement, step):
                high, stride = step, stride * 2
            low = max(low, step)
        while high - low > 1:
            middle = (low + high) // 2
            if self.keeps(placement, middle):
                low = middle
            else:
                high = middle
        return low

    def _memoised(self, placement: Placement, seed: int, step: int) -> tuple[float, ...]:
        key = (placement, seed, step)
        if key not in self._attained:
            self._attained[key] = self._once(placement, seed, rate_of(step))
        return self._attained[key]

    def _once(self, placement: Placement, seed: int, rate: float) -> tuple[float, ...]:
        workload = self.scenario.workloads[seed]
        outcome = self._simulate(placement, workload, rate, seed)
        return outcome.attainment(self.scenario.targets, skip=int(WARM_UP_SHARE * len(workload)))

    def _simulate(self, placement: Placement, workload: Workload, rate: float, seed: int) -> Outcome:
        self.simulated_requests += len(workload)
        offered = workload.at_rate(rate / placement.copies)
        return self.run(placement.unit, offered, self.scenario.targets, seed=seed)
