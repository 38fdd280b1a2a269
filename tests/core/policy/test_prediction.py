"""Predictions of workers whose times are easy to reckon; see tests.support.contexts.COST."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.step import Step, Table
from core.policy.context import LinkFacts, PoolFacts
from core.policy.prediction import (
    OUTPUT_TOKENS,
    UNSEEN_PROMPT_TOKENS,
    DecodeForecast,
    PoolForecast,
    handover_s,
    transfer_s,
)
from core.types import Role
from tests.support.contexts import COST, context
from tests.support.views import worker

P, D = Role.PREFILL, Role.DECODE
POOL = PoolForecast(PoolFacts(COST, max_num_seqs=4, max_num_batched_tokens=1000))


def test_prompts_owed_are_waited_for_less_what_is_done_of_them() -> None:
    busy = worker("p0", P, requests=2, tokens=800, prompts=2, since_s=10.0)
    assert POOL.prefill_wait_s(worker("p0", P), 10.0) == 0
    assert POOL.prefill_wait_s(busy, 10.0) == pytest.approx(0.010 + 0.080)
    assert POOL.prefill_wait_s(busy, 10.03) == pytest.approx(0.060)
    assert POOL.prefill_wait_s(busy, 99.0) == 0


def test_prompts_beyond_a_step_take_another_step() -> None:
    assert POOL.prefill_wait_s(worker("p0", P, tokens=1500, prompts=3), 0.0) == pytest.approx(2 * 0.010 + 0.150)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 1000)), min_size=1, max_size=5))
def test_prompts_of_one_step_take_what_the_cost_says_each_time(owed: list[tuple[int, int]]) -> None:
    cost = replace(COST, pair=Table((0.0, 500.0), (1e-8, 2e-8)), prefill_seq_s=0.003)
    pool = PoolForecast(PoolFacts(cost, max_num_batched_tokens=1000))
    for prompts, tokens in owed + owed:
        busy = worker("p0", P, requests=prompts, tokens=tokens, prompts=prompts)
        step = Step(tokens, prompts, busy.inflight_prompt_pairs)
        assert pool.prefill_wait_s(busy, 0.0) == cost.seconds(step)
        assert pool.prompt_s(tokens) == cost.prefill_s(tokens)


def test_requests_of_other_routers_count_as_prompts() -> None:
    seen_by_others = worker("p0", P, requests=1, tokens=100, num_running=1, num_waiting=1)
    expected_s = 0.010 + 0.0001 * (100 + UNSEEN_PROMPT_TOKENS)
    assert POOL.prefill_wait_s(seen_by_others, 0.0) == pytest.approx(expected_s)


def test_decode_steps_with_one_more() -> None:
    held = worker("d0", D, num_running=2, kv_blocks_used=10, kv_blocks_total=100)  # of 32 tokens
    step_s = 0.010 + 0.003 + 1e-6 * (320 + 100)
    assert POOL.decode(held, 100) == DecodeForecast(True, pytest.approx(step_s), pytest.approx(step_s))


def test_prompts_on_a_decode_worker_slow_its_outputs() -> None:
    forecast = POOL.decode(worker("d0", D, requests=1, tokens=900), 100)
    assert forecast.tpot_s - forecast.step_s == pytest.approx(0.100 / OUTPUT_TOKENS)


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
    assert POOL.decode(worker("d0", D, **members), 100).has_room is has_room  # type: ignore[arg-type]


def test_chunks_run_beside_the_decode_batch() -> None:
    idle, decoding = worker("d0", D), worker("d0", D, num_running=2, kv_blocks_used=10)
    assert POOL.whole_ttft_s(idle, 500, 0.0) == pytest.approx(0.010 + 0.050)
    step_s = 0.010 + 0.002 + 320e-6
    # Beside a batch a prompt adds its tokens only; half of the step under way comes first.
    assert POOL.whole_ttft_s(decoding, 500, 0.0) == pytest.approx(1.5 * step_s + 0.050)


def test_prompts_go_first_where_they_are_not_chunked() -> None:
    pool = PoolForecast(PoolFacts(COST, max_num_seqs=4, max_num_batched_tokens=1000, chunked=False))
    owing = worker("d0", D, requests=3, num_running=2, tokens=400, since_s=1.0)
    assert pool.whole_ttft_s(owing, 500, 1.02) == pytest.approx(0.050 - 0.020 + 0.060)


def test_pipeline_stages_share_the_batch_and_the_queue() -> None:
    staged = PoolForecast(PoolFacts(COST, max_num_seqs=8, max_num_batched_tokens=1000, stages=2))
    held = worker("d0", D, num_running=5, kv_blocks_used=10, kv_blocks_total=100)
    step_s = 0.010 + 0.003 + 1e-6 * (320 + 100) / 2  # each stage's batch has three of six sequences
    assert staged.decode(held, 100).step_s == pytest.approx(step_s)
    assert staged.prefill_wait_s(worker("p0", P, tokens=800), 0.0) == pytest.approx((0.010 + 0.080) / 2)


def test_kv_that_is_sent_layer_by_layer_hides_behind_the_prompt() -> None:
    assert transfer_s(LinkFacts(), 1000, 0.1) == 0
    assert transfer_s(LinkFacts(0.001, 1e-5, tail_share=1.0), 1000, 0.1) == pytest.approx(0.011)
    assert transfer_s(LinkFacts(0.001, 1e-5, tail_share=0.1), 1000, 0.1) == pytest.approx(0.002)
    assert transfer_s(LinkFacts(0.001, 1e-3, tail_share=0.1), 1000, 0.1) == pytest.approx(0.901)


def test_first_token_is_a_decode_step_unless_prefill_gives_it() -> None:
    forecast, idle, running = DecodeForecast(True, 0.02, 0.03), worker("d0", D), worker("d0", D, num_running=1)
    ours = context(request_overhead_s=0.1, handover_overhead_s=0.2)
    assert handover_s(ours, idle, forecast) == pytest.approx(0.32)
    assert handover_s(ours, running, forecast) == pytest.approx(0.33)
    assert handover_s(context(request_overhead_s=0.1, first_token_from_prefill=True), idle, forecast) == 0.1


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
        return POOL.whole_ttft_s(held, tokens, 0.0)

    # A step of a multiple of the budget holds a rounded share of the tokens.
    assert view(owed + more) >= view(owed) - 1e-3
