"""The last word between one pool and prefill and decode apart: what the router's own policy keeps on either.

The search gear's rules neither hold requests nor know the policy's margins, so where both families are near each other
it may favour the wrong one. Owns how a placement is started, and how much of the full gear is worth its time. Must not
know what follows from a rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

from core.policy.registry import policy_named
from sim.cluster import Admission, ClusterSpec, Mode
from sim.outcome import Outcome, Target
from sim.policy_gear import context_of, simulate_with_policy
from sim.search.goodput import Judge, Scenario, Simulate, rate_of
from sim.search.placements import Placement
from sim.search.recheck import MOST_WORKERS
from sim.workload import Workload

_REQUESTS: Final = 1_500
_WIDTH: Final = 4  # steps of the grid: 2 %

# The rate that is kept; None: not asked, the cluster is too large. `hint`: about which rate, in requests per second.
Referee: TypeAlias = Callable[[Placement, Scenario, float], float | None]


def own_policy_rate(
    placement: Placement, scenario: Scenario, hint: float, *, run: Simulate | None = None
) -> float | None:
    """Return the highest rate of the first requests that the router's own policy keeps; 0: none."""
    if placement.unit.num_workers > MOST_WORKERS:
        return None
    first = scenario.workloads[0]
    part = Scenario((first.part(0, min(len(first), _REQUESTS)),), scenario.targets)
    step = Judge(part, run or as_started).highest_step(placement, hint=hint, width=_WIDTH)
    return 0.0 if step is None else rate_of(step)


def as_started(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0) -> Outcome:
    """Simulate a cluster as `up` starts it, with what a router has learnt of outputs after a while; like simulate."""
    started = admitting(cluster)
    known = replace(
        context_of(started, targets, may_hold=True), mean_output_tokens=float(workload.output_tokens.mean())
    )
    return simulate_with_policy(started, workload, targets, policy_named("slo-aware", known), seed=seed)


def admitting(cluster: ClusterSpec) -> ClusterSpec:
    """Return the cluster with the live router's settings: it admits by both targets, and decode may take prompts."""
    apart = cluster.prefill is not None
    routing = replace(cluster.routing, admission=Admission.TTFT_AND_TPOT, overflow=apart)
    return replace(cluster, mode=Mode.HYBRID if apart else cluster.mode, routing=routing)
