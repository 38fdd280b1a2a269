"""A pair that answers otherwise than one worker is found; ties and untested routes are told as what they are."""

from __future__ import annotations

import asyncio
import json

import pytest

from bench.serving.document import Document
from bench.serving.endpoint import endpoint
from bench.serving.parity import Parity, check_parity, difference
from bench.serving.prompt_text import Vocabulary
from bench.serving.session import BenchSpec, opened
from tests.support.http_mocks import Heard, document, mock_server

WORDS = Vocabulary(("the", "sea", "was", "calm", "and", "a", "boat"))


def answer(*tokens: str, gap: float | None = None) -> Document:
    tops = None if gap is None else [{"x": -1.0, "y": -1.0 - gap}] * len(tokens)
    choice = {"text": "".join(tokens), "logprobs": {"tokens": list(tokens), "top_logprobs": tops}}
    return Document(200, json.dumps({"choices": [choice]}).encode())


def test_answers_are_equal_or_differ_beyond_ties() -> None:
    assert difference(answer("a", "b"), answer("a", "b")) == ""
    assert difference(answer("a", "c"), answer("a", "b", gap=0.001)) == ""
    assert difference(answer("a", "c"), answer("a", "b", gap=0.5)).startswith("token 2 differs")
    assert difference(answer("a", "c"), answer("a", "b")).startswith("token 2 differs")
    assert difference(answer("a"), answer("a", "b")).startswith("the text differs")


async def ask(*, pair_text: str, has_pair: bool = True) -> Parity:
    async def respond(heard: Heard, writer: asyncio.StreamWriter) -> None:
        is_whole = "prompt_logprobs" in heard.body
        assert heard.headers["x-baton-explain"] == "1"
        body = {"choices": [{"text": "same" if is_whole else pair_text}]}
        headers = {"x_baton_decode": "decode-0"}
        if has_pair and not is_whole:
            headers["x_baton_prefill"] = "prefill-0"
        writer.write(document(body, **headers))

    async with mock_server(respond) as mock, opened(endpoint(mock.url)) as session:
        return await check_parity(session, BenchSpec(), WORDS)


@pytest.mark.parametrize(
    ("pair_text", "has_pair", "is_broken", "words"),
    [
        ("same", True, False, "4 greedy answers of a pair are equal"),
        ("other", True, True, "broken in 4 of 4 prompts: prefill-0 and decode-0"),
        ("other", False, False, "not tested: none of 4 prompts"),
    ],
)
async def test_what_is_said_of_it(pair_text: str, has_pair: bool, is_broken: bool, words: str) -> None:
    found = await ask(pair_text=pair_text, has_pair=has_pair)
    assert found.is_broken is is_broken
    assert words in found.words()
