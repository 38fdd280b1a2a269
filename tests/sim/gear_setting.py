"""A small cluster, its traffic and its promise, on which the full gear is tested."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.policy.registry import policy_named
from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Outcome, Target
from sim.policy_gear import Refused, context_of, simulate_with_policy
from sim.workload import Workload
from tests.support.contexts import COST

TARGETS = (Target("interactive", 0.5, 0.05),)


def pool(replicas: int, **changes: int) -> PoolSpec:
    return replace(PoolSpec(replicas, COST, kv_capacity_tokens=20_000, max_num_seqs=32), **changes)  # type: ignore[arg-type]


def cluster(prefill: int = 2, decode: int = 2, **changes: object) -> ClusterSpec:
    mode = Mode.DISAGGREGATED if prefill else Mode.ONE_POOL_CHUNKED
    return replace(ClusterSpec(mode, pool(decode), pool(prefill) if prefill else None), **changes)  # type: ignore[arg-type]


def workload(count: int = 200, rate: float = 10.0, seed: int = 0) -> Workload:
    random = np.random.default_rng(seed)
    arrived = np.cumsum(random.exponential(1 / rate, count))
    return Workload("chat", arrived - arrived[0], random.integers(1, 1500, count), random.integers(1, 100, count))


def run(
    spec: ClusterSpec,
    load: Workload,
    policy: str = "slo-aware",
    *,
    may_hold: bool = False,
    refused: Refused = Refused.GIVE_UP,
) -> Outcome:
    known = context_of(spec, TARGETS, may_hold=may_hold)
    return simulate_with_policy(spec, load, TARGETS, policy_named(policy, known), refused=refused)
