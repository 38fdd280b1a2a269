"""Predictions of workers whose times are easy to reckon; see tests.support.contexts.COST."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.step import Step, Table
from core.policy.context import LinkFacts, PoolFacts
from core.policy.prediction import (
    UNSEEN_PROMPT_TOKENS,
    PoolForecast,
    handover_s,
    spread,
    transfer_s,
)
from core.types import Role, WorkerSpeed, WorkerView
from tests.support.contexts import COST, context
from tests.support.views import worker

P, D = Role.PREFILL, Role.DECODE
MEAN_OUTPUT = 100.0
FACTS = PoolFacts(COST, max_num_seqs=4, max_num_batched_tokens=1000)
POOL = PoolForecast(FACTS, COST, mean_output_tokens=MEAN_OUTPUT)


def wait_s(view: WorkerView, now_s: float, pool: PoolForecast = POOL) -> float:
    return pool.waiting(view).left_s(now_s)


def joined_tpot_s(view: WorkerView, tokens: int, *, join_s: float = 0.0, pool: PoolForecast = POOL) -> float:
    return pool.joined(pool.batch(view), tokens, join_s).tpot_s


def test_prompts_owed_are_waited_for_less_what_is_done_of_them() -> None:
    busy = worker("p0", P, requests=2, tokens=800, prompts=2, since_s=10.0)
    assert wait_s(worker("p0", P), 10.0) == 0
    assert wait_s(busy, 10.0) == pytest.approx(0.010 + 0.080)
    assert wait_s(busy, 10.03) == pytest.approx(0.060)
    assert wait_s(busy, 99.0) == 0


def test_prompts_beyond_a_step_take_another_step() -> None:
    assert wait_s(worker("p0", P, tokens=1500, prompts=3), 0.0) == pytest.approx(2 * 0.010 + 0.150)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 1000)), min_size=1, max_size=5))
def test_prompts_of_one_step_take_what_the_cost_says_each_time(owed: list[tuple[int, int]]) -> None:
    cost = replace(COST, pair=Table((0.0, 500.0), (1e-8, 2e-8)), prefill_seq_s=0.003)
    pool = PoolForecast(PoolFacts(cost, max_num_batched_tokens=1000), cost)
    for prompts, tokens in owed + owed:
        busy = worker("p0", P, requests=prompts, tokens=tokens, prompts=prompts)
        step = Step(tokens, prompts, busy.inflight_prompt_pairs)
        assert wait_s(busy, 0.0, pool) == cost.seconds(step)
        assert pool.prompt_s(tokens) == cost.prefill_s(tokens)


def test_requests_of_other_routers_count_as_prompts() -> None:
    seen_by_others = worker("p0", P, requests=1, tokens=100, num_running=1, num_waiting=1)
    expected_s = 0.010 + 0.0001 * (100 + UNSEEN_PROMPT_TOKENS)
    assert wait_s(seen_by_others, 0.0) == pytest.approx(expected_s)


def test_a_worker_that_runs_slower_than_its_cost_is_waited_for_longer() -> None:
    slow = WorkerSpeed(prefill_factor=2.0, decode_factor=1.5)
    busy = replace(worker("p0", P, requests=1, tokens=400, since_s=10.0), speed=slow)
    assert wait_s(busy, 10.0) == pytest.approx(2 * 0.050)
    held = replace(worker("d0", D, num_running=2, kv_blocks_used=10, kv_blocks_total=100), speed=slow)
    assert joined_tpot_s(held, 100) == pytest.approx(1.5 * (0.010 + 0.003 + 420e-6))


def test_decode_steps_with_one_more() -> None:
    held = POOL.batch(worker("d0", D, num_running=2, kv_blocks_used=10, kv_blocks_total=100))  # of 32 tokens
    now_s, step_s = 0.010 + 0.002 + 320e-6, 0.010 + 0.003 + 1e-6 * (320 + 100)
    joined = POOL.joined(held, 100, 0.0)
    assert joined == (pytest.approx(step_s), pytest.approx(step_s))
    assert held.joined_s + 100 * held.token_s == pytest.approx(step_s)
    assert held.sequence_s == pytest.approx(MEAN_OUTPUT * now_s)


def test_sequences_that_end_before_a_request_joins_do_not_slow_it() -> None:
    held = POOL.batch(worker("d0", D, num_running=2, kv_blocks_used=10, kv_blocks_total=100))
    assert POOL.joined(held, 100, held.sequence_s).step_s == pytest.approx(0.010 + 0.001 + 100e-6)
    # Half of the context is gone in half of the time, and one of two sequences.
    assert POOL.joined(held, 100, held.sequence_s / 2).step_s == pytest.approx(0.010 + 0.002 + 260e-6)
    coming = POOL.batch(worker("d0", D, requests=2, context=320))
    assert POOL.joined(coming, 100, 99.0).step_s == pytest.approx(0.010 + 0.003 + 420e-6)  # these only begin


def test_prompts_on_a_decode_worker_slow_its_outputs() -> None:
    joined = POOL.joined(POOL.batch(worker("d0", D, requests=1, tokens=900)), 100, 0.0)
    assert joined.tpot_s - joined.step_s == pytest.approx(0.100 / MEAN_OUTPUT)


@pytest.mark.parametrize(
    ("members", "has_room"),
    [
        ({"num_running": 3}, True),
        ({"num_running": 4}, False),
        ({"requests": 4}, False),
        ({"kv_blocks_used": 6, "kv_blocks_total": 10}, True),
        ({"kv_blocks_used": 7, "kv_blocks_total": 10}, False),
        ({"context": 230, "kv_blocks_total": 10}, False),
    ],
)
def test_room_is_in_blocks_and_in_the_batch(members: dict[str, int], has_room: bool) -> None:
    batch = POOL.batch(worker("d0", D, **members))  # type: ignore[arg-type]
    assert (batch.room_tokens > 100) is has_room
    assert (POOL.blocks_s(batch, 100) == 0) is has_room


def test_blocks_come_free_as_sequences_end() -> None:
    batch = POOL.batch(worker("d0", D, num_running=2, kv_blocks_used=9, kv_blocks_total=10))
    # 288 tokens come free over the time of a sequence; 69 are lacking.
    assert POOL.blocks_s(batch, 100) == pytest.approx(69 / 288 * batch.sequence_s)
    full = POOL.batch(worker("d0", D, num_running=4, kv_blocks_total=100))
    assert POOL.blocks_s(full, 100) == pytest.approx(full.sequence_s / 4)


def test_outputs_are_fast_again_when_enough_sequences_have_ended() -> None:
    batch = POOL.batch(worker("d0", D, num_running=3))
    joined = POOL.joined(batch, 0, 0.0)
    assert joined.tpot_s == pytest.approx(0.014)
    assert POOL.recovery_s(batch, joined, 0.014) == pytest.approx(0, abs=1e-12)
    assert POOL.recovery_s(batch, joined, 0.012) == pytest.approx(2 / 3 * batch.sequence_s)
    assert POOL.recovery_s(batch, joined, 0.010) == math.inf


def test_chunks_run_beside_the_decode_batch() -> None:
    idle, decoding = worker("d0", D), worker("d0", D, num_running=2, kv_blocks_used=10)
    assert POOL.whole_s(idle, POOL.batch(idle), 500, 0, 0.0) == (0.0, pytest.approx(0.010 + 0.050))
    step_s = 0.010 + 0.002 + 320e-6
    # Beside a batch a prompt adds its tokens only; half of the step under way comes first.
    batch = POOL.batch(decoding)
    assert POOL.whole_s(decoding, batch, 500, 0, 0.0) == pytest.approx((0.5 * step_s, step_s + 0.050))
    assert POOL.whole_s(decoding, batch, 500, 400, 0.0)[1] == pytest.approx(step_s + 0.010)


def test_prompts_go_first_where_they_are_not_chunked() -> None:
    facts = PoolFacts(COST, max_num_seqs=4, max_num_batched_tokens=1000, chunked=False)
    owing = worker("d0", D, requests=3, num_running=2, tokens=400, since_s=1.0)
    pool = PoolForecast(facts, COST)
    assert pool.whole_s(owing, pool.batch(owing), 500, 0, 1.02) == pytest.approx((0.050 - 0.020, 0.060))


def test_pipeline_stages_share_the_batch_and_the_queue() -> None:
    staged = PoolForecast(PoolFacts(COST, max_num_seqs=8, max_num_batched_tokens=1000, stages=2), COST)
    held = worker("d0", D, num_running=5, kv_blocks_used=10, kv_blocks_total=100)
    step_s = 0.010 + 0.003 + 1e-6 * (320 + 100) / 2  # each stage's batch has three of six sequences
    assert joined_tpot_s(held, 100, pool=staged) == pytest.approx(step_s)
    assert wait_s(worker("p0", P, tokens=800), 0.0, staged) == pytest.approx((0.010 + 0.080) / 2)


def test_kv_that_is_sent_layer_by_layer_hides_behind_the_prompt() -> None:
    assert transfer_s(LinkFacts(), 1000, 0.1) == 0
    assert transfer_s(LinkFacts(0.001, 1e-5, tail_share=1.0), 1000, 0.1) == pytest.approx(0.011)
    assert transfer_s(LinkFacts(0.001, 1e-5, tail_share=0.1), 1000, 0.1) == pytest.approx(0.002)
    assert transfer_s(LinkFacts(0.001, 1e-3, tail_share=0.1), 1000, 0.1) == pytest.approx(0.901)


def test_first_token_is_a_decode_step_unless_prefill_gives_it() -> None:
    ours = context(request_overhead_s=0.1, handover_overhead_s=0.2)
    assert handover_s(ours, is_decoding=False, step_s=0.02) == pytest.approx(0.32)
    assert handover_s(ours, is_decoding=True, step_s=0.02) == pytest.approx(0.33)
    known = context(request_overhead_s=0.1, first_token_from_prefill=True)
    assert handover_s(known, is_decoding=True, step_s=0.02) == 0.1


def test_spreads_of_parts_add_up_as_independent_errors_do() -> None:
    assert spread(3.0, 0.1, 4.0, 0.1) == pytest.approx(0.5 / 7)
    assert spread(0.0, 0.1, 0.0, 0.1) == 0
    known = PoolForecast(replace(FACTS, prefill_error=0.1), COST)
    assert known.prefill_spread == pytest.approx(0.1645)


@given(
    tokens=st.integers(0, 20_000),
    owed=st.integers(0, 20_000),
    prompts=st.integers(1, 20),
    running=st.integers(0, 10),
    more=st.integers(1, 5000),
)
def test_more_work_is_never_predicted_to_end_sooner(
    tokens: int, owed: int, prompts: int, running: int, more: int
) -> None:
    def view(owed_tokens: int) -> float:
        held = worker("d0", D, tokens=owed_tokens, prompts=prompts, num_running=running)
        return sum(POOL.whole_s(held, POOL.batch(held), tokens, 0, 0.0))

    # A step of a multiple of the budget holds a rounded share of the tokens.
    assert view(owed + more) >= view(owed) - 1e-3
