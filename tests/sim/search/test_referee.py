"""The router's own policy on finalists: as a router is started, on the first requests, and not on too many workers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.cluster import Admission, ClusterSpec, Mode, PoolSpec
from sim.outcome import Outcome, Target
from sim.search.goodput import Scenario
from sim.search.placements import Placement
from sim.search.recheck import MOST_WORKERS
from sim.search.referee import admitting, own_policy_rate
from sim.workload import Workload
from tests.sim.search.queue_model import PROMISE, queue_model, requests, shape

POOL = PoolSpec(4, shape().cost, 60_000)
APART = Placement(ClusterSpec(Mode.DISAGGREGATED, POOL, prefill=POOL), (0, 0), 8.0)
TOGETHER = Placement(ClusterSpec(Mode.ONE_POOL_CHUNKED, POOL), (0,), 4.0)


def test_the_rate_is_found_on_the_first_requests() -> None:
    sizes: set[int] = set()

    def run(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0) -> Outcome:
        sizes.add(len(workload))
        return queue_model(cluster, workload, targets, seed=seed)

    found = own_policy_rate(APART, Scenario((requests(2_000),), PROMISE), 5.0, run=run)
    assert found is not None
    assert found > 0
    assert sizes == {1_500}
    # Twice the copies carry twice the rate.
    doubled = replace(APART, cluster=replace(APART.cluster, decode=replace(POOL, replicas=8)), copies=2)
    doubled = replace(doubled, cluster=replace(doubled.cluster, prefill=replace(POOL, replicas=8)))
    assert own_policy_rate(doubled, Scenario((requests(2_000),), PROMISE), 5.0, run=run) == pytest.approx(
        2 * found, rel=0.06
    )


def test_many_workers_are_not_asked() -> None:
    many = replace(TOGETHER, cluster=replace(TOGETHER.cluster, decode=replace(POOL, replicas=MOST_WORKERS + 1)))
    assert own_policy_rate(many, Scenario((requests(50),), PROMISE), 5.0) is None


def test_a_router_admits_by_both_targets_and_lets_decode_take_prompts() -> None:
    apart, together = admitting(APART.cluster), admitting(TOGETHER.cluster)
    assert (apart.mode, apart.routing.admission, apart.routing.overflow) == (Mode.HYBRID, Admission.TTFT_AND_TPOT, True)
    assert (together.mode, together.routing.overflow) == (Mode.ONE_POOL_CHUNKED, False)
    assert apart.decode == POOL


def test_the_real_policy_keeps_about_what_the_search_gear_foresees_where_nothing_is_refused() -> None:
    found = own_policy_rate(TOGETHER, Scenario((requests(300),), PROMISE), 5.0)
    assert found is not None
    assert found > 0
