"""No simulated cluster exceeds its bound; the bound is near enough to be of use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.latency.step import Table
from sim.cluster import Admission, ClusterSpec, Mode, Order, PoolSpec, Routing
from sim.outcome import Target
from sim.search.bounds import Bounds, Demand, tabulated
from sim.search.goodput import Judge, Scenario, rate_of
from sim.search.placements import Placement
from sim.simulate import simulate
from sim.workload import Workload
from tests.sim.search.queue_model import PROMISE, requests, shape

POOLS = st.builds(
    lambda replicas, tensor, seqs: PoolSpec(
        replicas,
        shape(tensor, speed=1.7 if tensor == 2 else 1.0).cost,
        60_000,
        tensor,
        max_num_seqs=seqs,
        max_num_batched_tokens=2048,
    ),
    st.integers(1, 3),
    st.sampled_from((1, 2)),
    st.sampled_from((8, 64)),
)
ROUTINGS = st.builds(
    Routing,
    order=st.sampled_from(Order),
    admission=st.sampled_from(Admission),
    whole_below_tokens=st.sampled_from((0, 200)),
    overflow=st.booleans(),
)


@st.composite
def clusters(draw: st.DrawFn) -> ClusterSpec:
    mode = draw(st.sampled_from(Mode))
    paired = mode in (Mode.DISAGGREGATED, Mode.HYBRID)
    routing = draw(ROUTINGS)
    return ClusterSpec(mode, draw(POOLS), draw(POOLS) if paired else None, routing=routing)


@settings(max_examples=60)
@given(clusters(), st.floats(0.1, 2.0), st.floats(0.013, 0.1), st.integers(0, 3), st.sampled_from((0.5, 0.9)))
def test_no_simulated_goodput_exceeds_the_bound(
    cluster: ClusterSpec, ttft_s: float, tpot_s: float, seed: int, share: float
) -> None:
    targets = (Target("chat", ttft_s, tpot_s, share),)
    workload = requests(400, seed=seed)
    bound = Bounds(Demand.of(workload, targets)).highest_rate(cluster)
    judge = Judge(Scenario((workload,), targets), simulate)
    step = judge.highest_step(Placement(cluster, (0,), 1.0), hint=5.0)
    assert (0.0 if step is None else rate_of(step)) <= bound


@pytest.mark.parametrize("mode", list(Mode))
def test_the_bound_is_near_enough_to_leave_placements_out(mode: Mode) -> None:
    pool = PoolSpec(2, shape().cost, 60_000, max_num_batched_tokens=2048)
    paired = mode in (Mode.DISAGGREGATED, Mode.HYBRID)
    cluster = ClusterSpec(mode, pool, pool if paired else None)
    workload = requests(1500)
    bound = Bounds(Demand.of(workload, PROMISE)).highest_rate(cluster)
    step = Judge(Scenario((workload,), PROMISE), simulate).highest_step(Placement(cluster, (0,), 1.0), hint=5.0)
    assert step is not None
    assert bound / 2.5 < rate_of(step) <= bound
    lasting = Bounds(Demand.of(workload, PROMISE)).lasting_rate(cluster)
    assert bound / 2.5 < rate_of(step) <= lasting <= bound


def test_nothing_is_kept_where_an_idle_worker_is_too_slow() -> None:
    bounds = Bounds(Demand.of(requests(100), (Target("chat", 10.0, 0.001),)))
    assert bounds.highest_rate(ClusterSpec(Mode.ONE_POOL, PoolSpec(50, shape().cost, 60_000))) == 0.0


def test_prompts_that_an_unlimited_cache_holds_cost_nothing() -> None:
    shared = Workload(
        "shared",
        np.arange(3.0),
        np.array([1024, 1024, 1030]),
        np.array([2, 2, 2]),
        prefix_start=np.array([0, 2, 4, 6]),
        prefix_ids=np.array([0, 1, 0, 2, 0, 1]),
    )
    demand = Demand.of(shared, PROMISE)
    assert demand.tokens.tolist() == [1024, 512, 6]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0, 10)), min_size=1, max_size=6),
    st.lists(st.floats(0, 500), min_size=1, max_size=10),
)
def test_tables_evaluate_alike_one_by_one_and_together(steps: list[tuple[int, float]], points: list[float]) -> None:
    table = Table(tuple(np.cumsum([float(gap) for gap, _ in steps]).tolist()), tuple(value for _, value in steps))
    assert tabulated(table, np.array(points)) == pytest.approx([table(x) for x in points], abs=1e-9)
