"""Streams are read however they are cut, and what is no whole answer is an error.

Invariants: any cut of the bytes of a stream gives the same tokens, counts and end; exactly one end is told.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.serving.timing import StreamedAnswer, Timing
from tests.support.http_mocks import DONE, token_event, usage_event

OPENING = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
TOLD = b': baton {"ttft_ms":12.5,"verdict":"kept"}\n\n'


def read(pieces: list[bytes], **options: object) -> tuple[Timing, int]:
    ends: list[Timing] = []
    answer = StreamedAnswer(Timing(1.0), ends.append, **options)  # type: ignore[arg-type]
    answer.header(b"content-type", b"text/event-stream")
    answer.head(200)
    for number, piece in enumerate(pieces):
        if not answer.body(piece, 2.0 + number):
            break
    answer.ended(2.0 + len(pieces))
    return answer.timing, len(ends)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted({each % len(data) for each in at} - {0}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.integers(0, 10**6), max_size=12),
    st.booleans(),
    st.booleans(),
    st.sampled_from([" x", 'a "error" b', '"usage":{', "line\nbreak", "ü€"]),
)
def test_streams_are_read_however_they_are_cut(
    tokens: int, at: list[int], has_crlf: bool, keeps_text: bool, text: str
) -> None:
    events = [token_event(text) for _ in range(tokens)]
    data = b": ping\n\n" + b"".join(events) + usage_event(7, tokens + 1) + TOLD + DONE
    if has_crlf:
        data = data.replace(b"\n", b"\r\n")
    timing, ends = read(cut(data, at), keeps_text=keeps_text)
    assert (timing.error, ends, len(timing.tokens_s)) == ("", 1, tokens)
    assert (timing.prompt_tokens, timing.output_tokens) == (7, tokens + 1)
    assert timing.told["verdict"] == "kept"
    assert timing.text == (text * tokens if keeps_text else "")
    assert list(timing.tokens_s) == sorted(timing.tokens_s)


def test_the_definitions_of_vllm() -> None:
    pieces = [token_event(), token_event(), token_event() + usage_event(3, 5) + DONE]
    timing, _ = read(pieces)
    assert timing.ttft_ms == 1000.0
    assert timing.e2el_ms == 3000.0
    assert timing.itl_ms == [1000.0, 1000.0]
    assert timing.tpot_ms == 500.0  # five tokens in three events: 2 s for four of them
    assert timing.within(1000, 500)
    assert not timing.within(999, 500)
    assert not timing.within(1000, 499)


def test_one_token_has_no_tpot() -> None:
    timing, _ = read([token_event() + DONE])
    assert (timing.tpot_ms, timing.output_tokens, timing.itl_ms) == (0.0, 1, [])


def test_the_opening_event_of_a_chat_is_no_token() -> None:
    delta = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    timing, _ = read([OPENING, delta, delta + DONE], keeps_text=True)
    assert (timing.ttft_ms, len(timing.tokens_s), timing.text) == (2000.0, 2, "aa")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (token_event(), "without [DONE]"),
        (DONE, "no token came"),
        (token_event() + b'data: {"error":{"message":"worker lost"}}\n\n' + DONE, "worker lost"),
        (b"data: {oops\n\n" + DONE, "no JSON"),
    ],
)
def test_what_is_no_whole_answer_is_an_error(data: bytes, words: str) -> None:
    timing, ends = read([data])
    assert words in timing.error
    assert (timing.is_complete, ends) == (False, 1)


@pytest.mark.parametrize("body", [b'{"error":{"earliest_feasible_ms":250}}', b"busy", b"[]"])
def test_a_refusal_names_its_time_if_it_can(body: bytes) -> None:
    ends: list[Timing] = []
    answer = StreamedAnswer(Timing(1.0), ends.append)
    answer.header(b"x-baton-reservation", b"abc")
    answer.head(429)
    answer.body(body, 1.1)
    answer.ended(1.1)
    timing = ends[0]
    assert (timing.is_refused, timing.reservation, timing.is_complete) == (True, "abc", False)
    assert timing.earliest_ms == (250 if body.startswith(b"{") else None)
    assert timing.error.startswith("status 429: ")


def test_a_client_that_leaves_is_neither_complete_nor_failed() -> None:
    timing, ends = read([token_event(), token_event(), token_event()], leave_after=2)
    assert (timing.is_cancelled, timing.error, timing.is_complete, ends) == (True, "", False, 1)
    assert len(timing.tokens_s) == 2


def test_a_lost_connection_is_told_once() -> None:
    ends: list[Timing] = []
    answer = StreamedAnswer(Timing(1.0), ends.append)
    answer.head(200)
    answer.body(token_event(), 1.5)
    answer.failed("connection lost")
    assert [t.error for t in ends] == ["connection lost"]
