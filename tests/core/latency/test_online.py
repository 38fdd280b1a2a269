"""Costs learnt from steps.

- Steps that a cost made give that cost back, whatever the order and whatever their number.
- A few steps that took far too long hardly move it.
- Nothing is said before enough was seen.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.online import LEAST_STEPS, OnlineCost, cost_of
from core.latency.step import Step, StepCost, Table

TRUE = StepCost(
    dense=Table.line(0.010, 0.0001),
    pair=Table.constant(1e-8),
    decode_fixed=Table.line(0.010, 0.001),
    decode_context=Table.constant(1e-6),
)


def seen(count: int, *, seed: int = 0, noise: float = 0.0, stalls: float = 0.0) -> OnlineCost:
    """Observe steps of all sizes that take TRUE's time, give or take."""
    random_ = random.Random(seed)
    learnt = OnlineCost()

    def took(seconds: float) -> float:
        return seconds * (1 + random_.uniform(-noise, noise)) * (20.0 if random_.random() < stalls else 1.0)

    for _ in range(count):
        tokens, seqs = random_.randint(16, 4096), random_.randint(1, 64)
        context = seqs * random_.randint(50, 2000)
        pairs = tokens * tokens / 2
        learnt.observe_prompt(tokens, pairs, took(TRUE.seconds(Step(tokens, 0, pairs))))
        learnt.observe_decode(seqs, context, took(TRUE.decode_s(seqs, context)))
    return learnt


def learnt_cost(learnt: OnlineCost) -> StepCost:
    prompt, decode = learnt.prompt_terms(), learnt.decode_terms()
    assert prompt is not None
    assert decode is not None
    return cost_of(prompt, decode)


@given(seed=st.integers(0, 1000), count=st.integers(60, 300))
def test_a_cost_is_found_again(seed: int, count: int) -> None:
    cost = learnt_cost(seen(count, seed=seed))
    for tokens, seqs, context in ((64, 1, 200), (1000, 16, 16_000), (4000, 60, 60_000)):
        assert cost.prefill_s(tokens) == pytest.approx(TRUE.prefill_s(tokens), rel=0.01)
        assert cost.decode_s(seqs, context) == pytest.approx(TRUE.decode_s(seqs, context), rel=0.01)


def test_noise_and_stalls_hardly_move_it() -> None:
    cost = learnt_cost(seen(2000, noise=0.1, stalls=0.05))
    assert cost.prefill_s(1000) == pytest.approx(TRUE.prefill_s(1000), rel=0.1)
    assert cost.decode_s(16, 16_000) == pytest.approx(TRUE.decode_s(16, 16_000), rel=0.1)


def test_what_was_seen_of_other_loads_is_kept_through_a_long_even_one() -> None:
    learnt = seen(300)
    for _ in range(20_000):
        learnt.observe_decode(8, 4000, TRUE.decode_s(8, 4000))
    assert learnt_cost(learnt).decode_s(60, 60_000) == pytest.approx(TRUE.decode_s(60, 60_000), rel=0.02)


def test_slower_steps_are_believed_once_they_are_the_latest() -> None:
    learnt = seen(300)
    slower = TRUE.scaled(decode=2.0)
    random_ = random.Random(1)
    for _ in range(3000):
        seqs = random_.randint(1, 64)
        context = seqs * random_.randint(50, 2000)
        learnt.observe_decode(seqs, context, slower.decode_s(seqs, context))
    assert learnt_cost(learnt).decode_s(16, 16_000) == pytest.approx(slower.decode_s(16, 16_000), rel=0.02)


def test_nothing_is_said_of_few_steps_or_of_none_that_count() -> None:
    learnt = OnlineCost()
    for _ in range(LEAST_STEPS - 1):
        learnt.observe_decode(1, 10, 0.01)
        learnt.observe_prompt(10, 50.0, 0.01)
    learnt.observe_decode(0, 0, 0.01)
    learnt.observe_decode(1, 10, 0.0)
    learnt.observe_prompt(0, 0.0, 0.01)
    assert learnt.decode_terms() is None
    assert learnt.prompt_terms() is None
    learnt.observe_decode(1, 10, 0.01)
    assert learnt.decode_terms() is not None


def test_single_sequences_say_nothing_against_larger_batches() -> None:
    """A batch that is held dear is never formed, and so its cost never learnt."""
    seen = OnlineCost()
    for step in range(64):
        seen.observe_decode(1, 64 + step, 0.04)
    terms = seen.decode_terms()
    assert terms is not None
    fixed_s, per_seq_s, per_token_s = terms
    assert fixed_s + 8 * per_seq_s + 1024 * per_token_s < 0.05


def test_prompts_of_one_length_say_that_longer_ones_take_longer() -> None:
    seen = OnlineCost()
    for _ in range(64):
        seen.observe_prompt(64, 2048.0, 0.05)
    terms = seen.prompt_terms()
    assert terms is not None
    fixed_s, per_token_s, per_pair_s = terms
    assert fixed_s + 1024 * per_token_s + 512 * 1024 * per_pair_s > 0.6
