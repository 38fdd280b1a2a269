"""Prompts have the tokens that were asked for, and begin alike only where they should."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.serving.prompt_text import Vocabulary, learn_vocabulary, with_prefix
from core.errors import ConfigError

WORDS = Vocabulary(("the", "sea", "was", "calm", "and", "a", "boat"))


@given(st.integers(0, 10**12), st.integers(1, 40_000))
@settings(max_examples=60, deadline=None)
def test_text_has_its_number_of_words_and_is_the_same_again(key: int, count: int) -> None:
    text = WORDS.text(key, count)
    assert len(text.split()) == count
    assert text == WORDS.text(key, count)
    assert "  " not in text


def test_no_two_prompts_begin_alike() -> None:
    begins = {" ".join(WORDS.text(key, 50).split()[:6]) for key in range(5000)}
    assert len(begins) == 5000


def test_shared_beginnings_are_equal_text_of_equal_length() -> None:
    one = with_prefix(WORDS, [3, 4], 32, key=1, tokens=80).split()
    other = with_prefix(WORDS, [3, 5], 32, key=2, tokens=70).split()
    assert (len(one), len(other)) == (80, 70)
    assert one[:32] == other[:32]
    assert one[32:64] != other[32:64]
    assert len(with_prefix(WORDS, [3, 4], 32, key=1, tokens=64).split()) == 64


async def test_words_of_one_token_are_chosen_and_what_comes_on_top_is_known() -> None:
    async def count(text: str) -> int:
        return 3 + sum(2 if word in ("that", "which") else 1 for word in text.split())

    found = await learn_vocabulary(count)
    assert found.is_exact
    assert not {"that", "which"} & set(found.words)
    assert found.base_tokens == 3
    for tokens in (10, 64, 1000):
        assert await count(found.text(7, found.num_words(tokens))) == tokens


async def test_a_tokenizer_without_such_words_comes_close() -> None:
    async def count(text: str) -> int:
        return len(text.replace(" ", ""))  # a token a letter

    found = await learn_vocabulary(count)
    assert not found.is_exact
    assert await count(found.text(7, found.num_words(600))) == pytest.approx(600, abs=60)


async def test_a_server_that_counts_nothing_is_an_error() -> None:
    async def count(text: str) -> int:
        return 0

    with pytest.raises(ConfigError, match="--tokenizer"):
        await learn_vocabulary(count)
