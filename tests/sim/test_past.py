"""The past as a case: its workers, its costs, and every change that can be asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.policy.context import PolicyContext, PoolFacts
from core.recording import Setting
from core.types import Role
from sim.cluster import Mode
from sim.past import Case, Changes, case_of, changed, changes_of
from sim.recording import read_recording
from tests.support.recordings import BEGIN_S, CONTEXT, COST, later, requests, workers, written

PAIRS = Setting(BEGIN_S, "slo-aware", CONTEXT, workers(2, 2))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return case_of(read_recording(written(tmp_path / "t.jsonl", requests(), PAIRS)))


def test_the_cluster_is_the_recorded_one(case: Case) -> None:
    cluster = case.cluster
    assert (cluster.mode, cluster.num_workers, cluster.block_size) == (Mode.HYBRID, 4, 32)
    assert cluster.prefill is not None
    assert (cluster.prefill.replicas, cluster.decode.replicas, cluster.decode.cost) == (2, 2, COST)
    assert (cluster.decode.max_num_seqs, cluster.decode.kv_capacity_tokens) == (64, 4096 * 32)
    assert case.worker_ids == ("prefill-0", "prefill-1", "decode-0", "decode-1")
    assert [t.name for t in case.targets] == ["chat", "batch"]
    assert case.device_hours == pytest.approx(4 * case.span_s / 3600)


def test_a_role_that_showed_no_cost_takes_the_others(tmp_path: Path) -> None:
    half = replace(CONTEXT, pools={Role.PREFILL: PoolFacts(None), Role.DECODE: PoolFacts(COST)})
    found = case_of(read_recording(written(tmp_path / "t.jsonl", requests(20), replace(PAIRS, context=half))))
    assert found.cluster.prefill is not None
    assert found.cluster.prefill.cost == COST


def test_without_costs_the_remedy_is_said(tmp_path: Path) -> None:
    setting = replace(PAIRS, context=PolicyContext(targets=CONTEXT.targets))
    with pytest.raises(ConfigError, match="give --profile FILE"):
        case_of(read_recording(written(tmp_path / "t.jsonl", requests(20), setting)))


def test_one_pool_is_one_pool(tmp_path: Path) -> None:
    setting = replace(PAIRS, workers=workers(0, 2))
    found = case_of(read_recording(written(tmp_path / "t.jsonl", requests(40), setting)))
    assert (found.cluster.mode, found.cluster.prefill) == (Mode.ONE_POOL_CHUNKED, None)
    assert (found.run().end == 1).all()


def test_no_decode_worker_and_strange_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no decode worker"):
        case_of(read_recording(written(tmp_path / "a", requests(5), replace(PAIRS, workers=workers(1, 0)))))
    with pytest.raises(ConfigError, match="class gold"):
        case_of(read_recording(written(tmp_path / "b", [r._replace(slo_class="gold") for r in requests(5)], PAIRS)))


def test_pools_get_other_sizes(case: Case) -> None:
    found = changed(case, changes_of(["decode=3,prefill=1", "chunk=512"], [], []))
    assert found.worker_ids == ("prefill-0", "decode-0", "decode-1", "decode-2")
    assert found.cluster.prefill is not None
    assert (found.cluster.prefill.replicas, found.cluster.decode.max_num_batched_tokens) == (1, 512)
    assert found.context.pools[Role.DECODE].max_num_batched_tokens == 512
    alone = changed(case, changes_of(["prefill=0"], [], []))
    assert (alone.cluster.mode, alone.cluster.prefill, alone.cluster.num_workers) == (Mode.ONE_POOL_CHUNKED, None, 2)


def test_promise_policy_and_traffic_change(case: Case) -> None:
    changes = changes_of(["policy=random"], ["chat.ttft_ms=300", "batch.attainment=0.5"], [], traffic=2.0)
    found = changed(case, changes)
    assert (found.policy, found.targets[0].ttft_s, found.targets[1].attainment) == ("random", 0.3, 0.5)
    assert found.workload.rate == pytest.approx(2 * case.workload.rate)
    assert found.span_s == case.span_s / 2
    with pytest.raises(ConfigError, match=r"--slo gold\.ttft_ms: there is no class 'gold'; there are chat, batch"):
        changed(case, changes_of([], ["gold.ttft_ms=3"], []))


def test_a_killed_worker_serves_nothing(case: Case) -> None:
    found = changed(case, changes_of([], [], ["prefill-1"]))
    outcome = found.run()
    assert set(outcome.prefill_worker[outcome.end == 1].tolist()) <= {-1, 0}
    assert found.device_hours == pytest.approx(0.75 * case.device_hours)
    with pytest.raises(ConfigError, match="--kill decode-7: there is no such worker; there are prefill-0"):
        changed(case, changes_of([], [], ["decode-7"]))


def test_outages_stay_with_their_worker_when_pools_change(tmp_path: Path) -> None:
    gone = later(PAIRS, 5, *(w for w in PAIRS.workers if w.worker_id != "decode-0"))
    found = case_of(read_recording(written(tmp_path / "t.jsonl", requests(), PAIRS, gone)))
    [outage] = changed(found, Changes({"prefill": 3})).cluster.outages
    assert outage.worker == 3
    assert changed(found, Changes({"prefill": 1, "decode": 1, "chunk": 64})).cluster.prefill is not None


@pytest.mark.parametrize(
    ("settings", "promises", "traffic", "words"),
    [
        (["decode=0"], [], 1.0, "--set decode=0: decode is a whole number from 1"),
        (["tp=2"], [], 1.0, "with a key of prefill, decode"),
        (["policy=best"], [], 1.0, "policy is one of least-loaded"),
        ([], ["chat.ttft=3"], 1.0, r"--slo chat\.ttft=3: write CLASS\.KEY=VALUE"),
        ([], ["chat.ttft_ms=-3"], 1.0, "write CLASS"),
        ([], ["chat.attainment=1.5"], 1.0, "write CLASS"),
        ([], ["chat.ttft_ms=nan"], 1.0, "write CLASS"),
        ([], [], 0.0, "--traffic 0: write how many times"),
    ],
)
def test_wrong_words_are_told_with_what_to_write(
    settings: list[str], promises: list[str], traffic: float, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        changes_of(settings, promises, [], traffic=traffic)


def test_no_words_change_nothing() -> None:
    assert changes_of([], [], []).are_none
    assert not changes_of([], [], [], traffic=2.0).are_none
