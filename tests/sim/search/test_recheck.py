"""The full gear checks finalists, on no more than is worth its time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Target
from sim.policy_gear import gears_differ
from sim.search.goodput import Scenario
from sim.search.placements import Placement
from sim.search.recheck import MOST_REQUESTS, MOST_WORKERS, gears_apart
from sim.workload import Workload
from tests.sim.search.queue_model import PROMISE, requests, shape

POOL = PoolSpec(4, shape().cost, 60_000)
PLACEMENT = Placement(ClusterSpec(Mode.DISAGGREGATED, POOL, prefill=POOL), (0, 0), 8.0, copies=2)


def test_a_unit_is_checked_on_the_first_requests_at_its_share_of_the_rate() -> None:
    asked: list[tuple[ClusterSpec, Workload, int]] = []

    def recheck(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, skip: int = 0) -> float:
        asked.append((cluster, workload, skip))
        return 0.02

    assert gears_apart(recheck, Scenario((requests(4000),), PROMISE), PLACEMENT, 10.0) == 0.02
    ((cluster, workload, skip),) = asked
    assert (cluster.num_workers, len(workload), skip) == (4, MOST_REQUESTS, 150)
    assert workload.rate == pytest.approx(5.0)


def test_many_workers_are_not_checked() -> None:
    many = replace(PLACEMENT, cluster=replace(PLACEMENT.cluster, decode=replace(POOL, replicas=2 * MOST_WORKERS)))
    assert gears_apart(gears_differ, Scenario((requests(50),), PROMISE), many, 10.0) is None
    assert gears_apart(None, Scenario((requests(50),), PROMISE), PLACEMENT, 10.0) is None


def test_the_real_gears_are_near_each_other_below_the_limit() -> None:
    apart = gears_apart(gears_differ, Scenario((requests(400),), PROMISE), PLACEMENT, 6.0)
    assert apart == pytest.approx(0.0, abs=0.05)
