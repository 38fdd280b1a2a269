"""The search for options, by hand; times are those of tests.support.contexts.COST.

- Parts of a forecast are never negative and add up to its TTFT.
- More work before a request never lets its best option answer sooner.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.policy.context import LinkFacts, PolicyContext
from core.policy.options import Asked, Option, Options, strain
from core.policy.prediction import PoolForecast
from core.policy.promise import Promises
from core.policy.roster import Roster
from core.types import ClusterView, RequestShape, Role, WorkerSpeed, WorkerView
from tests.support.contexts import COST, context
from tests.support.views import worker

P, D = Role.PREFILL, Role.DECODE


def pairs(
    *members: WorkerView, tokens: int = 1000, known: PolicyContext | None = None, width: int = 8, **request: Any
) -> list[Option]:
    """Predict every pair, best first."""
    known = known or context()
    pools = {role: PoolForecast(known.pools[role], COST) for role in Role}
    shape = RequestShape("r", tokens, 16, "interactive", **request)
    promise = Promises(known).of(shape, 0.0, 0.0)
    options = Options(known, pools)
    roster = Roster(pools).of(ClusterView(members))
    found = options.pairs(Asked(tokens, shape.cached, promise), roster, 0.0, width=width)
    return sorted(found, key=lambda option: strain(option, promise))


def ways(options: list[Option]) -> list[tuple[str, str | None]]:
    return [(option.decode, option.prefill) for option in options]


def test_parts_of_a_pair_follow_one_another() -> None:
    known = context(link=LinkFacts(0.001, 1e-5, tail_share=0.5), request_overhead_s=0.002, handover_overhead_s=0.003)
    busy = worker("p0", P, requests=1, tokens=400, since_s=0.0)
    (option,) = pairs(busy, worker("d0", D, num_running=1), known=known)
    assert option.queue_s == pytest.approx(0.050)
    assert option.prefill_s == pytest.approx(0.110)
    assert option.transfer_s == pytest.approx(0.001 + 0.005)
    assert option.blocks_s == 0
    assert option.first_step_s == pytest.approx(0.005 + 1.5 * 0.013, rel=0.1)
    assert option.ttft_s == pytest.approx(0.050 + 0.110 + 0.006 + 0.005 + 1.5 * 0.013, rel=0.02)


def test_a_cached_prefix_is_not_computed_and_a_cached_context_is_not_sent() -> None:
    members = (worker("p0", P), worker("p1", P), worker("d0", D), worker("d1", D))
    known = context(link=LinkFacts(0.0, 1e-4, tail_share=1.0))
    best = pairs(*members, known=known, cached=(("d1", 800), ("p1", 600)))[0]
    assert (best.decode, best.prefill) == ("d1", "p1")
    assert best.prefill_s == pytest.approx(0.010 + 0.040)
    assert best.transfer_s == pytest.approx(200 * 1e-4)


def test_a_token_is_always_left_to_compute() -> None:
    best = pairs(worker("p0", P), worker("d0", D), cached=(("p0", 5000),))[0]
    assert best.prefill_s == pytest.approx(0.010 + 0.0001)


def test_affinity_does_not_overload_a_worker() -> None:
    def first(owed: int) -> str | None:
        hot = worker("p0", P, requests=1, tokens=owed)
        members = (hot, worker("p1", P), worker("p2", P), worker("d0", D))
        return pairs(*members, cached=(("p0", 800),), width=1)[0].prefill

    assert first(600) == "p0"  # 70 ms of a queue, 80 ms less to compute
    assert first(950) == "p0"  # 105 ms, but the 80 ms are gained by those behind as well
    assert first(1050) == "p1"  # beyond its share of the queues, only what the request itself gains counts


def test_a_slow_worker_gets_less() -> None:
    slow = replace(worker("p0", P), speed=WorkerSpeed(prefill_factor=2.0))
    dragging = replace(worker("d0", D), speed=WorkerSpeed(decode_factor=2.0))
    assert ways(pairs(slow, worker("p1", P), dragging, worker("d1", D)))[0] == ("d1", "p1")


def test_outputs_that_must_be_fast_are_kept_apart_from_new_ones() -> None:
    tight = replace(worker("d0", D, num_running=3), tightest_tpot_s=0.015)
    assert ways(pairs(worker("p0", P), tight, worker("d1", D, num_running=6)))[0] == ("d1", "p0")


def test_the_wait_for_blocks_runs_while_the_prompt_waits() -> None:
    full = worker("d0", D, num_running=2, kv_blocks_used=90, kv_blocks_total=100)
    (soon,) = pairs(worker("p0", P), full)
    (late,) = pairs(worker("p0", P, requests=1, tokens=3000, since_s=0.0), full)
    assert soon.full_s == late.full_s > late.blocks_s > 0
    assert soon.blocks_s - late.blocks_s == pytest.approx(0.310)


def test_intervals_come_from_the_profile_until_the_worker_told_of_itself() -> None:
    facts = {role: replace(context().pools[role], prefill_error=0.1, decode_error=0.2) for role in Role}
    known = context(pools=facts)
    pools = {role: PoolForecast(facts[role], COST) for role in Role}
    (option,) = pairs(worker("p0", P), worker("d0", D), known=known)
    forecast = option.forecast(pools, None)
    assert forecast.tpot_spread == pytest.approx(0.329)
    assert forecast.ttft_spread == pytest.approx(((0.110 * 0.1645) ** 2 + (0.012 * 0.329) ** 2) ** 0.5 / 0.122)
    told = replace(worker("d0", D), speed=WorkerSpeed(decode_spread=0.05))
    assert pairs(worker("p0", P), told, known=known)[0].forecast(pools, None).tpot_spread == 0.05


def busy_worker(role: Role, seqs: int = 40) -> st.SearchStrategy[WorkerView]:
    return st.builds(
        lambda name, requests, tokens, blocks, factor: replace(
            worker(
                name,
                role,
                requests=requests,
                tokens=tokens if role is P else 0,
                kv_blocks_used=blocks,
                kv_blocks_total=200,
                num_running=requests,
            ),
            speed=WorkerSpeed(factor, factor, 0.1, 0.2),
        ),
        st.sampled_from("abcd"),
        st.integers(0, seqs),
        st.integers(0, 9000),
        st.integers(0, 250),
        st.sampled_from((0.5, 1.0, 3.0)),
    )


busy_workers = st.sampled_from(Role).flatmap(busy_worker)


@given(st.lists(busy_workers, max_size=6, unique_by=lambda w: w.record.worker_id), st.integers(0, 9000))
def test_parts_add_up(members: list[WorkerView], tokens: int) -> None:
    known = context(link=LinkFacts(0.001, 1e-5, tail_share=0.1), request_overhead_s=0.01)
    pools = {role: PoolForecast(known.pools[role], COST) for role in Role}
    for option in pairs(*members, tokens=tokens, known=known):
        forecast = option.forecast(pools, None)
        parts = (
            forecast.queue_s, forecast.prefill_s, forecast.transfer_s, forecast.blocks_s, forecast.first_step_s,
        )  # fmt: skip
        assert min(parts) >= 0
        assert forecast.ttft_s == pytest.approx(option.ttft_s)
        assert 0 <= forecast.ttft_spread <= 0.2
        assert forecast.tpot_s > 0


@given(
    prefill=busy_worker(P),
    decode=busy_worker(D, seqs=27),
    tokens=st.integers(1, 3000),
    more_tokens=st.integers(0, 3000),
    more_seqs=st.integers(0, 3),
    more_blocks=st.integers(0, 9),
)
def test_more_work_never_makes_a_pair_answer_sooner(
    prefill: WorkerView, decode: WorkerView, tokens: int, more_tokens: int, more_seqs: int, more_blocks: int
) -> None:
    def ttft_s(sender: WorkerView, receiver: WorkerView) -> float:
        return pairs(sender, receiver, tokens=tokens)[0].ttft_s

    prefill = replace(prefill, inflight_prompts=1)
    decode = replace(decode, record=replace(decode.record, worker_id="z"))
    before_s = ttft_s(prefill, decode)
    # A step of a multiple of the budget holds a rounded share of the tokens.
    owing = replace(prefill, inflight_prompt_tokens=prefill.inflight_prompt_tokens + more_tokens)
    assert ttft_s(owing, decode) >= before_s - 3e-3
    seqs, blocks = decode.inflight_requests + more_seqs, decode.state.kv_blocks_used + more_blocks
    fuller = replace(
        decode, inflight_requests=seqs, state=replace(decode.state, num_running=seqs, kv_blocks_used=blocks)
    )
    assert ttft_s(prefill, fuller) >= before_s - 3e-3
