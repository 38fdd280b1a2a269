"""Neighbours differ in one setting and reach every one."""

from __future__ import annotations

from dataclasses import fields, replace

from sim.cluster import Admission, ClusterSpec, Mode, Order, PoolSpec, Routing
from sim.search.placements import Placement, whole_prompts
from sim.search.routings import Settings, neighbours, thresholds
from tests.sim.search.queue_model import question, shape

POOL = PoolSpec(1, shape().cost, 60_000, max_num_batched_tokens=2048)


def placement(mode: Mode, routing: Routing) -> Placement:
    return Placement(ClusterSpec(mode, POOL, POOL, routing=routing), (0, 0), 2.0)


def differences(a: Placement, b: Placement) -> int:
    one, other = a.cluster, b.cluster
    routed = sum(getattr(one.routing, f.name) != getattr(other.routing, f.name) for f in fields(Routing))
    return routed + (one.decode != other.decode) + (one.prefill != other.prefill)


def test_neighbours_differ_in_one_setting() -> None:
    start = placement(Mode.HYBRID, Routing(overflow=True))
    found = list(neighbours(question(), start))
    assert len(found) == len(set(found))
    assert {differences(start, other) for other in found} == {1}


def test_a_hybrid_never_becomes_one_that_serves_nothing_whole() -> None:
    for routing in (Routing(overflow=True), Routing(whole_below_tokens=thresholds(question())[1])):
        for other in neighbours(question(), placement(Mode.HYBRID, routing)):
            assert other.cluster.routing.overflow or other.cluster.routing.whole_below_tokens


def test_only_hybrids_have_thresholds_and_chunks_of_decode() -> None:
    start = placement(Mode.DISAGGREGATED, Routing())
    expected = [replace(Routing(), admission=a) for a in (Admission.TTFT, Admission.TTFT_AND_TPOT)]
    expected.append(replace(Routing(), order=Order.SLACK))
    found = [other.cluster for other in neighbours(question(), start)]
    assert [c.routing for c in found if c.routing != Routing()] == expected
    assert {c.decode for c in found} == {POOL}


def test_a_prefill_step_may_take_fewer_tokens_than_whole_prompts() -> None:
    asked = question()
    for mode in (Mode.DISAGGREGATED, Mode.HYBRID):
        clusters = [other.cluster for other in neighbours(asked, placement(mode, Routing(overflow=True)))]
        limits = {c.prefill.max_num_batched_tokens for c in clusters if c.prefill is not None}
        assert limits == {*asked.chunk_tokens, whole_prompts(asked)} | {POOL.max_num_batched_tokens}
    alone = Placement(ClusterSpec(Mode.ONE_POOL_CHUNKED, POOL), (0,), 1.0)
    assert all(other.cluster.prefill is None for other in neighbours(asked, alone))


def test_settings_pass_from_one_placement_of_a_mode_to_another() -> None:
    routing = Routing(overflow=True, whole_below_tokens=64)
    found = placement(Mode.HYBRID, routing)
    limited = replace(POOL, max_num_batched_tokens=512), replace(POOL, max_num_batched_tokens=256)
    found = replace(found, cluster=replace(found.cluster, prefill=limited[0], decode=limited[1]))
    larger = replace(POOL, replicas=3)
    other = Placement(ClusterSpec(Mode.HYBRID, larger, larger), (0, 0), 6.0)
    given = Settings.of(found.cluster).given_to(other).cluster
    assert given.routing == routing
    assert given.prefill == replace(larger, max_num_batched_tokens=512)
    assert given.decode == replace(larger, max_num_batched_tokens=256)
    one = Placement(ClusterSpec(Mode.ONE_POOL_CHUNKED, POOL), (0,), 1.0)
    chunked = Placement(ClusterSpec(Mode.ONE_POOL_CHUNKED, limited[0], routing=routing), (0,), 1.0)
    assert Settings.of(chunked.cluster).given_to(one).cluster == replace(one.cluster, routing=routing)


def test_thresholds_are_prompt_lengths_of_the_workload() -> None:
    asked = question()
    zero, *lengths = thresholds(asked)
    assert zero == 0
    assert lengths == sorted(lengths)
    assert all(length % 16 == 0 and length <= asked.workload.prompt_tokens.max() for length in lengths)
