"""Neighbours differ in one setting and reach every one."""

from __future__ import annotations

from dataclasses import fields, replace

from sim.cluster import Admission, ClusterSpec, Mode, Order, PoolSpec, Routing
from sim.search.placements import Placement, whole_prompts
from sim.search.routings import neighbours, prefill_steps, thresholds
from tests.sim.search.queue_model import question, shape

POOL = PoolSpec(1, shape().cost, 60_000, max_num_batched_tokens=2048)


def placement(mode: Mode, routing: Routing) -> Placement:
    return Placement(ClusterSpec(mode, POOL, POOL, routing=routing), (0, 0), 2.0)


def differences(a: Placement, b: Placement) -> int:
    one, other = a.cluster, b.cluster
    routed = sum(getattr(one.routing, f.name) != getattr(other.routing, f.name) for f in fields(Routing))
    return routed + (one.decode != other.decode)


def test_neighbours_differ_in_one_setting() -> None:
    start = placement(Mode.HYBRID, Routing(overflow=True))
    found = list(neighbours(question(), start))
    assert len(found) == len(set(found))
    assert {differences(start, other) for other in found} == {1}


def test_a_hybrid_never_becomes_one_that_serves_nothing_whole() -> None:
    for routing in (Routing(overflow=True), Routing(whole_below_tokens=thresholds(question())[1])):
        for other in neighbours(question(), placement(Mode.HYBRID, routing)):
            assert other.cluster.routing.overflow or other.cluster.routing.whole_below_tokens


def test_only_hybrids_have_thresholds_and_chunks() -> None:
    start = placement(Mode.DISAGGREGATED, Routing())
    expected = [replace(Routing(), admission=a) for a in (Admission.TTFT, Admission.TTFT_AND_TPOT)]
    expected.append(replace(Routing(), order=Order.SLACK))
    assert [other.cluster.routing for other in neighbours(question(), start)] == expected


def test_thresholds_are_prompt_lengths_of_the_workload() -> None:
    asked = question()
    zero, *lengths = thresholds(asked)
    assert zero == 0
    assert lengths == sorted(lengths)
    assert all(length % 16 == 0 and length <= asked.workload.prompt_tokens.max() for length in lengths)


def test_a_prefill_step_may_take_other_numbers_of_tokens_than_it_does() -> None:
    asked = question()
    for mode in (Mode.DISAGGREGATED, Mode.HYBRID):
        start = placement(mode, Routing(overflow=True))
        found = [other.cluster for other in prefill_steps(asked, start)]
        limits = [c.prefill.max_num_batched_tokens for c in found if c.prefill is not None]
        assert limits == sorted({*asked.chunk_tokens, whole_prompts(asked)} - {POOL.max_num_batched_tokens})
        assert {replace(c, prefill=POOL) for c in found} == {start.cluster}
    alone = Placement(ClusterSpec(Mode.ONE_POOL_CHUNKED, POOL), (0,), 1.0)
    assert list(prefill_steps(asked, alone)) == []
