"""The simulated measurement: hand-computed cases, and what must hold for any load.

Invariants: TTFT is at least the prefill of the shortest prompt alone; TPOT at least one decode step of one sequence;
slower workers are never faster.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.closed_loop import Batching, Load, Served, measure
from core.latency.step import StepCost, Table

# 1 ms a prompt token; a decode step takes 10 ms plus 1 ms for each sequence, whatever the context.
COST = StepCost(Table.line(0.0, 1e-3), Table.constant(0.0), Table.line(10e-3, 1e-3), Table.constant(0.0))


def load(concurrency: int, prompts: list[int], outputs: list[int]) -> Load:
    return Load(concurrency, np.array(prompts), np.array(outputs))


def served(batching: Batching, cost: StepCost = COST, capacity: int = 10**6, **limits: int) -> Served:
    return Served(batching, cost, cost, capacity, **limits)


@pytest.mark.parametrize("batching", list(Batching))
def test_one_request_alone(batching: Batching) -> None:
    ttft_s, tpot_s = measure(load(1, [100], [11]), served(batching))
    assert (ttft_s, tpot_s) == pytest.approx((0.1, 11e-3))


@pytest.mark.parametrize("batching", list(Batching))
def test_one_after_the_other(batching: Batching) -> None:
    ttft_s, tpot_s = measure(load(1, [100, 300], [11, 21]), served(batching))
    assert (ttft_s, tpot_s) == pytest.approx((0.2, 11e-3))


def test_prompts_of_one_step_finish_together() -> None:
    ttft_s, tpot_s = measure(load(2, [100, 300], [5, 5]), served(Batching.PREFILL_FIRST))
    assert (ttft_s, tpot_s) == pytest.approx((0.4, 12e-3))


def test_a_prompt_longer_than_the_budget_takes_several_steps() -> None:
    two_steps = measure(load(2, [100, 300], [1, 1]), served(Batching.PREFILL_FIRST, max_num_batched_tokens=100))
    # The second prompt waits for the first (0.1 s) and then takes three steps (0.3 s).
    assert two_steps == pytest.approx(((0.1 + 0.4) / 2, 0.0))


def test_mixed_prompts_delay_those_who_decode() -> None:
    # The first of two finishes, and its successor's prompt of 50 tokens is computed beside the other's 3rd token.
    ttft_s, tpot_s = measure(load(2, [50, 50, 50], [2, 4, 2]), served(Batching.MIXED))
    first_step, both, mixed, pair = 0.1, 12e-3, 11e-3 + 50e-3, 12e-3
    assert ttft_s == pytest.approx((2 * first_step + mixed) / 3)
    assert tpot_s == pytest.approx((both + (both + mixed + pair) / 3 + pair) / 3)


def test_a_full_cache_makes_requests_wait() -> None:
    tight = measure(load(2, [100, 100], [10, 10]), served(Batching.MIXED, capacity=150))
    alone_s = 0.1 + 9 * 11e-3  # the second starts when the first is done
    assert tight == pytest.approx(((0.1 + alone_s + 0.1) / 2, 11e-3))


def test_a_separate_prefill_worker_leaves_decode_alone() -> None:
    _, tpot_s = measure(load(2, [500] * 6, [20] * 6), served(Batching.SEPARATE))
    assert tpot_s < 12e-3 + 1e-9


def test_an_equal_seed_draws_an_equal_load() -> None:
    one, two = (Load.drawn(4, 100, 50, rounds=3, shortest=0.5, seed=7) for _ in range(2))
    assert (one.prompt_tokens == two.prompt_tokens).all()
    assert (one.output_tokens == two.output_tokens).all()
    assert one.prompt_tokens.min() >= 50
    assert one.prompt_tokens.max() <= 100


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(Batching)),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 40)), min_size=1, max_size=25),
    st.integers(16, 600),
    st.integers(300, 5000),
)
def test_no_measurement_beats_an_empty_worker(
    batching: Batching, concurrency: int, sizes: list[tuple[int, int]], budget: int, capacity: int
) -> None:
    prompts, outputs = [p for p, _ in sizes], [o for _, o in sizes]
    asked = load(concurrency, prompts, outputs)
    limits = {"capacity": capacity, "max_num_batched_tokens": budget}
    ttft_s, tpot_s = measure(asked, served(batching, **limits))
    assert ttft_s >= 1e-3 * min(prompts) - 1e-9
    assert tpot_s >= 11e-3 - 1e-9 or max(outputs) == 1
    slower = measure(asked, served(batching, COST.scaled(prefill=2.0, decode=2.0), **limits))
    assert slower == pytest.approx((2 * ttft_s, 2 * tpot_s))
