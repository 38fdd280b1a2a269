"""Who runs which pools, on a small made-up workload."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from bench.fleet.goodput import Judged
from bench.fleet.scenes import MOONCAKE, SMALL, Promise, Scene, Traffic
from bench.fleet.systems import BATON, DISTSERVE, ONE_POOL, ONE_POOL_BATON, PEERS, Entry, described, enter, routed
from sim.cluster import Admission, ClusterSpec, Mode, Rule
from sim.search.referee import as_started
from sim.simulate import simulate

REQUESTS = 120


def entry_of(traffic: Traffic) -> Entry:
    workload = traffic.workload(None, requests=REQUESTS, longest=20_000)
    return enter(Scene(SMALL[0], traffic, Promise(5.0, 0.05)), workload)


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[ClusterSpec, object]]:
    systems = entry_of(MOONCAKE).systems
    assert all(system.cluster is not None for system in systems)
    return {system.name: (system.cluster, system.run) for system in systems if system.cluster is not None}


def test_all_run_and_take_all_gpus_or_less(found: dict[str, tuple[ClusterSpec, object]]) -> None:
    assert set(found) == {ONE_POOL, ONE_POOL_BATON, DISTSERVE, BATON, *PEERS}
    assert all(0 < cluster.gpus <= 8 for cluster, _ in found.values())
    assert {name for name, (cluster, _) in found.items() if cluster.prefill is None} == {ONE_POOL, ONE_POOL_BATON}


def test_others_refuse_nothing_and_share_pools_and_ours_admits(found: dict[str, tuple[ClusterSpec, object]]) -> None:
    for name in (ONE_POOL, DISTSERVE, *PEERS):
        if name in found:
            assert found[name][0].routing.admission is Admission.OFF
    peers = [found[name][0] for name in PEERS if name in found]
    assert len({described(cluster) for cluster in peers}) == 1
    assert {cluster.mode for cluster in peers} == {Mode.DISAGGREGATED}
    assert found["P/D, round robin"][0].routing.rule is Rule.ROUND_ROBIN
    for name in (BATON, ONE_POOL_BATON):
        assert found[name][0].routing.admission is Admission.TTFT_AND_TPOT
        assert found[name][1] is as_started


def test_the_routers_policy_and_the_compiled_rule_keep_alike(found: dict[str, tuple[ClusterSpec, object]]) -> None:
    cluster, _ = found["P/D, least loaded"]
    workload = MOONCAKE.workload(None, requests=REQUESTS, longest=20_000).at_rate(20.0)
    ttft_s = simulate(cluster, workload, Promise(5.0, 0.05).targets).ttft_s
    targets = Promise(float(np.median(ttft_s[len(ttft_s) // 5 :])), 1.0).targets  # half of the requests are within it
    by_rule = Judged(cluster, targets, simulate).attained(workload, 20.0)
    by_policy = Judged(cluster, targets, partial(routed, "least-loaded")).attained(workload, 20.0)
    assert by_rule == pytest.approx(0.5, abs=0.03)
    assert by_policy == pytest.approx(by_rule, abs=0.1)
