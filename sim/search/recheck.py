"""The check of a finalist by the full gear, the router's own policies.

Owns how much of it is worth its time. Must not know how either gear works.
"""

from __future__ import annotations

from typing import Protocol

from sim.cluster import ClusterSpec
from sim.outcome import Target
from sim.search.goodput import WARM_UP_SHARE, Scenario
from sim.search.placements import Placement
from sim.workload import Workload

MOST_REQUESTS, MOST_WORKERS = 3000, 64  # well under a second; the policies look at every worker for every request


class Recheck(Protocol):
    """Says by how much attainment in the search gear exceeds that in the full gear; sim.policy_gear.gears_differ."""

    def __call__(
        self, cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, skip: int = 0
    ) -> float:
        """Run the workload in both gears."""
        ...


def gears_apart(recheck: Recheck | None, scenario: Scenario, placement: Placement, rate: float) -> float | None:
    """Return how far the gears differ on the first requests at a rate; None: not checked, or too many workers."""
    if recheck is None or placement.unit.num_workers > MOST_WORKERS:
        return None
    first = scenario.workloads[0]
    workload = first.part(0, min(len(first), MOST_REQUESTS))
    offered = workload.at_rate(rate / placement.copies)
    return recheck(placement.unit, offered, scenario.targets, skip=int(WARM_UP_SHARE * len(workload)))
