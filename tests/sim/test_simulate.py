"""The search gear: cases reckoned by hand, and what must hold of every cluster.

Invariants: each arrival ends exactly once; blocks are never negative nor more than there are, and none is held at the
end; nothing the router counts is left over; equal seeds give equal outcomes; equal workers may be swapped.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sim.cluster import Admission, ClusterSpec, LinkSpec, Mode, Order, Outage, Routing, Rule
from sim.kernel.routing import assign
from sim.kernel.run import advance
from sim.outcome import End, Outcome, Target
from sim.simulate import outcome_of, simulate, start
from sim.workload import Workload
from tests.support.small_clusters import LOOSE, arrivals, clusters, pool, workloads

TIGHT = (Target("tight", 0.5, 0.03),)
PROPERTIES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def disaggregated(**changes: object) -> ClusterSpec:
    return replace(ClusterSpec(Mode.DISAGGREGATED, pool(), pool()), **changes)  # type: ignore[arg-type]


# Reckoned by hand: a prompt of n tokens takes 10 + n ms, a decode step of B sequences 20 + B ms.


def test_a_handed_over_request_takes_prefill_link_and_decode_steps() -> None:
    link = LinkSpec(bytes_per_s=1e5, latency_s=0.003, kv_bytes_per_token=100, layers=10)
    outcome = simulate(disaggregated(link=link), arrivals((0.0, 100, 3)), LOOSE)
    # Prefill ends at 110 ms; 10,000 bytes take 100 ms from 0 on, so only the last layer's 10 ms are left.
    assert outcome.ttft_s[0] == pytest.approx(0.110 + 0.010 + 0.003 + 0.021)
    assert outcome.tpot_s[0] == pytest.approx(0.021)


def test_a_slow_link_is_the_bound_and_is_shared() -> None:
    link = LinkSpec(bytes_per_s=1e4, kv_bytes_per_token=100, layers=10)
    outcome = simulate(disaggregated(link=link), arrivals((0.0, 100, 1), (0.0, 100, 1)), LOOSE)
    # Each takes 1 s on the wire; the second waits for the first.
    assert sorted(outcome.ttft_s) == pytest.approx([1.0 + 0.021, 2.0 + 0.021])


def test_whole_layers_are_sent_only_after_prefill_without_streaming() -> None:
    link = LinkSpec(bytes_per_s=1e5, kv_bytes_per_token=100, layerwise=False)
    outcome = simulate(disaggregated(link=link), arrivals((0.0, 100, 1)), LOOSE)
    assert outcome.ttft_s[0] == pytest.approx(0.110 + 0.100 + 0.021)


def test_overheads_are_added_to_the_time_to_first_token() -> None:
    spec = disaggregated(request_overhead_s=0.5, handover_overhead_s=0.25)
    assert simulate(spec, arrivals((0.0, 100, 1)), LOOSE).ttft_s[0] == pytest.approx(0.110 + 0.021 + 0.75)
    alone = ClusterSpec(Mode.ONE_POOL_CHUNKED, pool(), request_overhead_s=0.5, handover_overhead_s=0.25)
    assert simulate(alone, arrivals((0.0, 100, 1)), LOOSE).ttft_s[0] == pytest.approx(0.110 + 0.5)


def test_prefill_may_give_the_first_token() -> None:
    outcome = simulate(disaggregated(first_token_from_prefill=True), arrivals((0.0, 100, 3)), LOOSE)
    assert outcome.ttft_s[0] == pytest.approx(0.110)
    assert outcome.e2e_s[0] == pytest.approx(0.110 + 2 * 0.021)


def test_chunks_share_steps_with_decoding_sequences() -> None:
    spec = ClusterSpec(Mode.ONE_POOL_CHUNKED, pool(budget=64))
    outcome = simulate(spec, arrivals((0.0, 10, 8), (0.030, 100, 1)), LOOSE)
    # The first decodes from 20 ms on: 21 ms alone. The second joins at 41 ms: chunks of 63 and 37 beside one sequence
    # cost 21 ms + 1 ms a token, so it is done at 41 + 84 + 58 ms.
    assert outcome.ttft_s[1] == pytest.approx(0.041 + 0.084 + 0.058 - 0.030)
    assert outcome.max_itl_s[0] == pytest.approx(0.084)


def test_whole_prompts_go_first_in_one_pool() -> None:
    spec = ClusterSpec(Mode.ONE_POOL, pool(budget=64))
    outcome = simulate(spec, arrivals((0.0, 10, 8), (0.030, 100, 1)), LOOSE)
    assert outcome.ttft_s[1] == pytest.approx(0.041 + 0.110 - 0.030)
    assert outcome.max_itl_s[0] == pytest.approx(0.110 + 0.021)


def test_a_sequence_without_room_pushes_the_latest_out_and_both_finish() -> None:
    spec = ClusterSpec(Mode.ONE_POOL_CHUNKED, pool(kv_tokens=96))
    outcome = simulate(spec, arrivals((0.0, 30, 40), (0.0, 30, 40)), LOOSE)
    assert outcome.num_preemptions > 0
    assert list(outcome.end) == [End.DONE, End.DONE]
    assert outcome.e2e_s[0] < outcome.e2e_s[1]


def test_a_request_beyond_every_cache_is_too_long() -> None:
    outcome = simulate(disaggregated(), arrivals((0.0, 15_990, 40), (0.0, 10, 2)), LOOSE)
    assert list(outcome.end) == [End.TOO_LONG, End.DONE]


def test_a_cached_prefix_is_not_computed_again() -> None:
    one = arrivals((0.0, 200, 2), (5.0, 200, 2))
    shared = replace(
        one, prefix_start=np.array([0, 3, 6]), prefix_ids=np.array([0, 1, 2, 0, 1, 3]), prefix_block_tokens=64
    )
    spec = disaggregated(prefix_cache=True)
    outcome = simulate(spec, shared, LOOSE)
    assert outcome.ttft_s[0] == pytest.approx(0.210 + 0.021)
    assert outcome.ttft_s[1] == pytest.approx(0.010 + 0.072 + 0.021)  # 128 of 200 tokens are there


def test_slack_order_lets_the_class_in_a_hurry_go_first() -> None:
    targets = (Target("patient", 100.0, 1.0), Target("hurried", 1.0, 1.0))
    work = replace(arrivals((0.0, 300, 1), (0.001, 300, 1), (0.002, 300, 1)), slo_class=np.array([0, 0, 1]))
    spec = disaggregated(prefill=pool(budget=300), routing=Routing(order=Order.SLACK))
    outcome = simulate(spec, work, targets)
    assert outcome.ttft_s[2] < outcome.ttft_s[1]


def test_admission_refuses_what_would_be_late_and_keeps_the_rest() -> None:
    work = arrivals(*((0.0, 300, 2) for _ in range(6)))
    spec = disaggregated(prefill=pool(budget=300), routing=Routing(admission=Admission.TTFT))
    outcome = simulate(spec, work, (Target("t", 1.0, 1.0),))
    assert (outcome.end == End.REFUSED).sum() == 3
    assert outcome.met((Target("t", 1.0, 1.0),)).sum() == 3


def test_short_prompts_run_whole_where_they_decode() -> None:
    spec = ClusterSpec(Mode.HYBRID, pool(), pool(), routing=Routing(whole_below_tokens=50))
    outcome = simulate(spec, arrivals((0.0, 50, 2), (1.0, 51, 2)), LOOSE)
    assert list(outcome.prefill_worker) == [-1, 0]


def test_overflow_runs_whole_where_prefill_would_be_late() -> None:
    targets = (Target("t", 0.4, 1.0),)
    spec = ClusterSpec(Mode.HYBRID, pool(), pool(budget=300), routing=Routing(overflow=True))
    outcome = simulate(spec, arrivals((0.0, 300, 2), (0.0, 300, 2)), targets)
    assert list(outcome.prefill_worker) == [0, -1]
    assert outcome.attainment(targets) == (1.0,)


def test_pipeline_stages_carry_as_many_prompts_at_a_time() -> None:
    spec = disaggregated(prefill=pool(budget=100, stages=2))
    outcome = simulate(spec, arrivals((0.0, 100, 1), (0.0, 100, 1)), LOOSE)
    # The second enters the first stage when the first has left it, after half of its 110 ms.
    assert outcome.ttft_s == pytest.approx([0.110 + 0.021, 0.055 + 0.110 + 0.021])


@pytest.mark.parametrize("rule", [Rule.PREDICTED_WORK, Rule.LEAST_LOADED, Rule.ROUND_ROBIN])
def test_rules_spread_equal_requests_over_equal_workers(rule: Rule) -> None:
    spec = ClusterSpec(Mode.DISAGGREGATED, pool(3), pool(3), routing=Routing(rule=rule))
    outcome = simulate(spec, arrivals(*((0.0, 200, 4) for _ in range(6))), LOOSE)
    assert sorted(outcome.prefill_worker) == [0, 0, 1, 1, 2, 2]
    assert sorted(outcome.decode_worker) == [3, 3, 4, 4, 5, 5]


def test_seeds_move_the_random_rule_only() -> None:
    work = arrivals(*((0.1 * i, 50, 4) for i in range(40)))
    random = ClusterSpec(Mode.DISAGGREGATED, pool(3), pool(3), routing=Routing(rule=Rule.RANDOM))
    assert list(simulate(random, work, LOOSE, seed=1).decode_worker) != list(
        simulate(random, work, LOOSE, seed=2).decode_worker
    )
    steady = replace(random, routing=Routing())
    assert _same(simulate(steady, work, LOOSE, seed=1), simulate(steady, work, LOOSE, seed=2))


# Outages


def test_a_lost_prefill_worker_leaves_the_prompt_to_decode() -> None:
    spec = disaggregated(outages=(Outage(0, 0.05, 1e9),))
    outcome = simulate(spec, arrivals((0.0, 100, 2)), LOOSE)
    assert outcome.prefill_worker[0] == -1
    assert outcome.ttft_s[0] == pytest.approx(0.05 + 0.110)


def test_a_lost_decode_worker_moves_the_request_with_its_tokens() -> None:
    spec = ClusterSpec(Mode.DISAGGREGATED, pool(2), pool(1), outages=(Outage(1, 0.2, 1e9),))
    outcome = simulate(spec, arrivals((0.0, 100, 20)), LOOSE)
    assert outcome.decode_worker[0] == 2
    # 4 tokens by 194 ms; then a prompt of 104 tokens, and 16 tokens more.
    assert outcome.ttft_s[0] == pytest.approx(0.110 + 0.021)
    assert outcome.e2e_s[0] == pytest.approx(0.2 + 0.114 + 16 * 0.021)


# The decode worker is lost while the KV of the first request is sent to it, and computed anew that one would be late.
SMALL = pool(kv_tokens=256, seqs=1, budget=16, chunked=False)
LOST_WHILE_SENDING = ClusterSpec(
    Mode.HYBRID,
    SMALL,
    replace(SMALL, replicas=3),
    LinkSpec(bytes_per_s=1e4, kv_bytes_per_token=100),
    Routing(admission=Admission.TTFT),
    outages=(Outage(3, 0.3, 0.32),),
)


def test_what_was_sent_to_a_lost_worker_does_not_land_there() -> None:
    link, routing = LinkSpec(bytes_per_s=1e4, kv_bytes_per_token=100), Routing(admission=Admission.TTFT)
    spec = disaggregated(link=link, routing=routing, outages=(Outage(1, 0.35, 0.37),))
    outcome = simulate(spec, arrivals((0.0, 300, 1), (1.0, 1, 1)), TIGHT)
    assert list(outcome.end) == [End.REFUSED, End.DONE]


def test_requests_wait_for_the_first_worker_to_start() -> None:
    spec = disaggregated(outages=(Outage(0, 0.0, 60.0), Outage(1, 0.0, 60.0)))
    outcome = simulate(spec, arrivals((1.0, 100, 2)), LOOSE)
    assert outcome.end[0] == End.DONE
    assert outcome.ttft_s[0] > 59.0 - 1.0


def test_requests_that_no_worker_comes_back_for_are_unserved() -> None:
    spec = ClusterSpec(Mode.ONE_POOL_CHUNKED, pool(), outages=(Outage(0, 0.0, 2e300),))
    outcome = simulate(spec, arrivals((1.0, 100, 2)), LOOSE)
    assert outcome.end[0] == End.UNSERVED


# Properties


def _same(a: Outcome, b: Outcome) -> bool:
    arrays = ("ttft_s", "tpot_s", "e2e_s", "max_itl_s", "end", "prefill_worker", "decode_worker")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)


@PROPERTIES
@given(clusters(), workloads(), st.sampled_from([LOOSE, TIGHT]))
@example(LOST_WHILE_SENDING, arrivals((0.0, 121, 1), *[(0.0, 1, 1)] * 22, (1.0, 1, 1)), TIGHT)
def test_each_arrival_ends_exactly_once_and_nothing_is_left(
    spec: ClusterSpec, work: Workload, targets: tuple[Target, ...]
) -> None:
    outcome = simulate(spec, work, targets)
    assert set(outcome.end.tolist()) <= {End.DONE, End.REFUSED, End.TOO_LONG}
    assert outcome.blocks_held == 0
    done = outcome.end == End.DONE
    assert np.isfinite(outcome.ttft_s[done]).all()
    assert (outcome.e2e_s[done] >= outcome.ttft_s[done]).all()
    assert np.isinf(outcome.ttft_s[~done]).all()


@PROPERTIES
@given(clusters(), workloads())
def test_blocks_stay_within_bounds_and_all_counts_return_to_zero(spec: ClusterSpec, work: Workload) -> None:
    state = start(spec, work, LOOSE)
    first_decode = spec.prefill.replicas if spec.prefill else 0
    limits = state.pools.kv_blocks[state.workers.pool[:-1]]
    for request, at_s in enumerate(work.arrived_s):
        advance(state, at_s)
        used = state.workers.used_blocks[:-1]
        assert (used >= 0).all()
        assert (used <= limits).all()
        assert (state.workers.seqs_held[:-1] >= 0).all()
        prefill = request % first_decode if first_decode else -1
        assign(state, request, prefill, first_decode + request % spec.decode.replicas, at_s)
    advance(state, 1e300)
    for count in ("used_blocks", "seqs_held", "legs", "owed_requests", "owed_tokens", "load_seqs", "load_context"):
        assert (getattr(state.workers, count)[:-1] == 0).all(), count
    assert outcome_of(spec, state).blocks_held == 0


@PROPERTIES
@given(clusters(), workloads(), st.integers(0, 9))
def test_equal_seeds_give_equal_outcomes(spec: ClusterSpec, work: Workload, seed: int) -> None:
    assert _same(simulate(spec, work, TIGHT, seed=seed), simulate(spec, work, TIGHT, seed=seed))


@PROPERTIES
@given(workloads(), st.sampled_from([(0, 1), (0, 2), (1, 2)]), st.booleans())
def test_which_of_two_equal_workers_starts_late_does_not_matter(
    work: Workload, pair: tuple[int, int], of_decode: bool
) -> None:
    spec = ClusterSpec(Mode.DISAGGREGATED, pool(3), pool(3))
    first, second = (worker + 3 * of_decode for worker in pair)
    a = simulate(replace(spec, outages=(Outage(first, 0.0, 1e6),)), work, LOOSE)
    b = simulate(replace(spec, outages=(Outage(second, 0.0, 1e6),)), work, LOOSE)
    assert np.allclose(a.ttft_s, b.ttft_s)
    assert np.allclose(a.tpot_s, b.tpot_s)
