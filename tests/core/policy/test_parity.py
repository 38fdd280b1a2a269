"""What counts as the same answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.policy.parity import NUM_BLOCKS, NUM_PROMPTS, NUM_TOKENS, TOLERANCE, Answer, disagreement, prompts_of

PLAIN = Answer(("a", "b"), ({"a": -0.1, "b": -3.0}, {"b": -0.2, "c": -2.0}))


def answer(tokens: str, *logprobs: dict[str, float]) -> Answer:
    return Answer(tuple(tokens), logprobs)


def test_rounding_agrees() -> None:
    moved = answer("ab", {"a": -0.1 + 0.9 * TOLERANCE, "b": -3.0}, {"b": -0.2, "d": -9.0})
    assert disagreement([PLAIN], [moved]) == ""


def test_distant_log_probabilities_disagree_even_where_tokens_do_not() -> None:
    moved = answer("ab", {"a": -0.1, "b": -3.0}, {"b": -0.2 - 1.1 * TOLERANCE})
    assert disagreement([PLAIN, PLAIN], [PLAIN, moved]) == (
        "prompt 2 of the self-test: log-probabilities of token 2 are 0.275 apart, beyond the tolerance of 0.25"
    )
    assert "inf apart" in disagreement([PLAIN], [answer("ab", {"x": -0.1}, {"y": -0.1})])


def test_another_token_disagrees_unless_it_is_a_tie() -> None:
    other = answer("bb", {"a": -0.1, "b": -3.0}, {"b": -0.2})
    assert disagreement([PLAIN], [other]) == (
        "prompt 1 of the self-test: token 1 is 'b' of the pair and 'a' of the decode worker alone"
    )
    tied = answer("ab", {"a": -0.7, "b": -0.7 - 0.5 * TOLERANCE}, {"b": -0.1})
    # What follows another token is another text: it is not compared.
    assert disagreement([tied], [answer("bz", {"a": -0.7, "b": -0.7}, {"z": -5.0})]) == ""


@pytest.mark.parametrize("empty", [0, 1])
def test_no_token_is_a_disagreement(empty: int) -> None:
    answers = [PLAIN, PLAIN]
    answers[empty] = answer("")
    assert "no token was made" in disagreement(answers[:1], answers[1:])


@given(st.integers(1, 512), st.integers(NUM_TOKENS + 1, 100_000), st.text(max_size=5))
def test_prompts_fit_and_are_the_same_for_the_same_pair(block_size: int, max_model_len: int, seed: str) -> None:
    prompts = prompts_of(block_size, max_model_len, seed)
    assert prompts == prompts_of(block_size, max_model_len, seed)
    assert len(prompts) == NUM_PROMPTS
    for prompt in prompts:
        assert 1 <= len(prompt) <= min(NUM_BLOCKS * block_size, max_model_len - NUM_TOKENS)
