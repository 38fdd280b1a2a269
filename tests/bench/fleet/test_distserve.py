"""DistServe's placement: the balance of both phases, and what each is asked alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.fleet.distserve import Phase, balanced, placement
from core.latency.step import StepCost, Table
from sim.cluster import ClusterSpec, LinkSpec, Mode, PoolSpec
from sim.workload import Workload

COST = StepCost(Table.line(0.0, 1e-4), Table.constant(0.0), Table.constant(0.01), Table.constant(0.0), 0.0)
POOLS = tuple(PoolSpec(1, COST, 10_000, tensor_parallel=size) for size in (1, 2, 4))
LIKE = ClusterSpec(Mode.DISAGGREGATED, POOLS[0], POOLS[0], link=LinkSpec(1e9, 1e-3, 1_000))
WORKLOAD = Workload("w", np.arange(10, dtype=np.float64), np.full(10, 100, np.int64), np.full(10, 50, np.int64))


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.sampled_from(POOLS), st.sampled_from(POOLS), st.integers(2, 64))
def test_no_other_split_carries_more(first: float, second: float, p: PoolSpec, d: PoolSpec, gpus: int) -> None:
    found = balanced(Phase(p, first), Phase(d, second), gpus)
    every = [
        min(x * first, y * second)
        for x in range(1, gpus + 1)
        for y in range(1, gpus + 1)
        if x * p.gpus + y * d.gpus <= gpus
    ]
    if found is None:
        assert not every
    else:
        assert found[0] * p.gpus + found[1] * d.gpus <= gpus
        assert min(found[0] * first, found[1] * second) == max(every)


def test_each_phase_takes_its_own_best_size() -> None:
    asked: list[tuple[ClusterSpec, Workload]] = []

    def keeps(cluster: ClusterSpec, workload: Workload) -> float:
        asked.append((cluster, workload))
        is_prefill = (workload.output_tokens == 1).all()
        pool = cluster.prefill if is_prefill else cluster.decode
        assert pool is not None
        return {1: 1.0, 2: 6.0, 4: 8.0}[pool.gpus] if is_prefill else {1: 0.0, 2: 2.0, 4: 6.0}[pool.gpus]

    found = placement(LIKE, POOLS, 12, WORKLOAD, keeps)
    assert found is not None
    assert found.prefill is not None
    # 3 requests/s for each GPU of prefill in pairs, 1.5 of decode in fours: 2 + 2 workers carry 12.
    assert (found.prefill.replicas, found.prefill.tensor_parallel) == (2, 2)
    assert (found.decode.replicas, found.decode.tensor_parallel) == (2, 4)
    assert found.link == LIKE.link
    assert len(asked) == 6
    for cluster, workload in asked:
        other = cluster.decode if (workload.output_tokens == 1).all() else cluster.prefill
        assert other is not None
        assert other.cost.decode_s(1, 100) < 1e-6
        assert cluster.link.bytes_per_s == float("inf")


def test_without_a_size_that_keeps_the_promise_there_is_no_placement() -> None:
    assert placement(LIKE, POOLS, 8, WORKLOAD, lambda cluster, workload: 0.0) is None
    assert placement(LIKE, POOLS[2:], 4, WORKLOAD, lambda cluster, workload: 1.0) is None
