"""Who runs which pools, on a small made-up workload."""

from __future__ import annotations

from functools import partial

import pytest

from bench.fleet.goodput import Judged
from bench.fleet.scenes import CONV, MOONCAKE, SMALL, Promise, Scene, Traffic
from bench.fleet.systems import BATON, DISTSERVE, ONE_POOL, ONE_POOL_BATON, PEERS, Entry, described, enter, routed
from sim.cluster import Admission, ClusterSpec, Mode, Rule
from sim.search.referee import as_started
from sim.simulate import simulate

REQUESTS = 120


def entry_of(traffic: Traffic) -> Entry:
    workload = traffic.workload(None, requests=REQUESTS, longest=20_000)
    return enter(Scene(SMALL[0], traffic, Promise(1.0, 0.05)), workload)


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[ClusterSpec, object]]:
    systems = entry_of(CONV).systems
    assert all(system.cluster is not None for system in systems)
    return {system.name: (system.cluster, system.run) for system in systems if system.cluster is not None}


def test_all_run_and_take_all_gpus_or_less(found: dict[str, tuple[ClusterSpec, object]]) -> None:
    assert set(found) == {ONE_POOL, ONE_POOL_BATON, DISTSERVE, BATON, *PEERS} - {"P/D, prefix affinity"}
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


def test_prefix_affinity_takes_part_where_prefixes_are_shared() -> None:
    assert "P/D, prefix affinity" in {system.name for system in entry_of(MOONCAKE).systems}


def test_the_routers_policy_and_the_compiled_rule_keep_alike(found: dict[str, tuple[ClusterSpec, object]]) -> None:
    cluster, _ = found["P/D, least loaded"]
    targets = Promise(1.0, 0.05).targets
    workload = CONV.workload(None, requests=REQUESTS, longest=20_000)
    compiled = Judged(cluster, targets, simulate).attained(workload, 40.0)
    assert Judged(cluster, targets, partial(routed, "least-loaded")).attained(workload, 40.0) == pytest.approx(
        compiled, abs=0.06
    )
