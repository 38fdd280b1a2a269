"""How many workers of either role: the fewest that keep the promise, or the split that keeps it for the most requests.

Owns the choice, by estimated capacities and, where one is given, a simulation of a few candidates beside them. Must not
know the workers there are, or how one size becomes another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from core.control.actions import PoolSizes, SizeLimits
from core.control.capacity import Capacities, ServiceModel
from core.control.demand import Demand
from core.types import Role


@dataclass(frozen=True, slots=True)
class Bounds:
    """What sizes may be; all bounds included."""

    limits: SizeLimits
    least_total: int
    most_total: int

    def allow(self, sizes: PoolSizes) -> bool:
        """Whether sizes lie within."""
        return self.limits.allow(sizes) and self.least_total <= total(sizes) <= self.most_total


class Evaluator(Protocol):
    """Simulates pools under a demand."""

    def attained(self, model: ServiceModel, demand: Demand, sizes: PoolSizes) -> tuple[float, ...]:
        """Return the share of each class's requests that meet both targets in the steady state of these sizes."""
        ...


def total(sizes: PoolSizes) -> int:
    """Count the workers of both pools."""
    return sizes.prefill + sizes.decode


def needed(capacity: Capacities, rate: float, bounds: Bounds) -> PoolSizes | None:
    """Return the fewest workers of each role that carry the rate, at least the bounds'; None: too many.

    More requests never need fewer workers of either role.
    """
    found = []
    for role in Role:
        rates = capacity.prefill if role is Role.PREFILL else capacity.decode
        least, most = bounds.limits.least.of(role), min(bounds.limits.most.of(role), len(rates) - 1)
        enough = [count for count in range(least, most + 1) if rates[count] >= rate]
        if not enough:
            return None
        found.append(enough[0])
    sizes = PoolSizes(*found)
    return sizes if total(sizes) <= bounds.most_total else None


def best_split(capacity: Capacities, workers: int, bounds: Bounds, near: PoolSizes) -> PoolSizes:
    """Return the split of so many workers that carries the most; of equal ones the nearest to `near`.

    Raises ValueError when no split lies within the limits.
    """
    splits = _splits(workers, bounds.limits)
    if not splits:
        raise ValueError(f"{workers} workers cannot be split within {bounds.limits}")
    return max(splits, key=lambda s: (round(capacity.rate(s.prefill, s.decode), 6), -abs(s.prefill - near.prefill)))


def _splits(workers: int, limits: SizeLimits) -> list[PoolSizes]:
    splits = (PoolSizes(prefill, workers - prefill) for prefill in range(workers + 1))
    return [split for split in splits if limits.allow(split)]


@dataclass(slots=True)
class Simulated:
    """Simulates sizes under one demand, each once, and at most `budget` of them."""

    evaluator: Evaluator
    model: ServiceModel
    demand: Demand
    budget: int
    _known: dict[PoolSizes, tuple[float, float]]

    def score(self, sizes: PoolSizes) -> tuple[float, float] | None:
        """Return by how much the worst class exceeds its promised share, and the kept share of all.

        None: the budget is spent.
        """
        if sizes not in self._known:
            if len(self._known) >= self.budget:
                return None
            shares = self.evaluator.attained(self.model, self.demand, sizes)
            margins = [share - target.attainment for share, target in zip(shares, self.model.targets, strict=True)]
            weights = [float(self.demand.weight[self.demand.slo_class == c].sum()) for c in range(len(shares))]
            kept = sum(share * weight for share, weight in zip(shares, weights, strict=True))
            self._known[sizes] = (min(margins), kept)
        return self._known[sizes]

    @property
    def count(self) -> int:
        """How many sizes were simulated."""
        return len(self._known)


def simulated_of(evaluator: Evaluator, model: ServiceModel, demand: Demand, budget: int) -> Simulated:
    """Begin with none simulated."""
    return Simulated(evaluator, model, demand, budget, {})


def refined_need(sizes: PoolSizes, bounds: Bounds, simulated: Simulated) -> PoolSizes:
    """Add workers to an estimate until its simulation keeps the promise; or take some away while it does.

    One worker at a time, of the role where it helps more; what the budget leaves open stays as it is.
    """
    score = simulated.score(sizes)
    if score is None:
        return sizes
    step = -1 if score[0] >= 0 else 1
    while True:
        near = [PoolSizes(sizes.prefill + step, sizes.decode), PoolSizes(sizes.prefill, sizes.decode + step)]
        scored = [(found, size) for size in near if bounds.allow(size) and (found := simulated.score(size))]
        if not scored:
            return sizes
        (margin, _), best = max(scored, key=lambda pair: (pair[0], pair[1].prefill))
        if step < 0 and margin < 0:
            return sizes
        sizes = best
        if step > 0 and margin >= 0:
            return sizes


def refined_split(sizes: PoolSizes, bounds: Bounds, simulated: Simulated) -> PoolSizes:
    """Move workers between the pools, one at a time, while the simulation keeps more requests by it."""
    best = simulated.score(sizes)
    if best is None:
        return sizes
    for to in Role:
        moved = False
        while bounds.allow(size := sizes.flipped(to)):
            score = simulated.score(size)
            if score is None or score[1] <= best[1]:
                break
            sizes, best, moved = size, score, True
        if moved:
            break
    return sizes
