"""A stream that is made again: what was sent is left out, what is new passes, what differs is refused.

Invariants: wherever a stream is cut and however it arrives before and after the cut, the client gets every byte once
and in order; the order for another worker names exactly the tokens that were told, in the groups they were told in; a
byte that differs in what was sent is never passed over.
"""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.codec import tokens_to_pb
from core.errors import ResumeFailed
from router.transcript import Check, Transcript, without_logprobs

GROUPS = st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4), max_size=12)


def event(text: str, **choice: object) -> bytes:
    body = {"id": "cmpl-1", "created": 1700000000, "choices": [{"index": 0, "text": text, **choice}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if end > start]


def passed(check: Check, pieces: list[bytes]) -> bytes:
    """Do as the relay does: once all that was sent has been made again, the rest passes as it comes."""
    out = b""
    for piece in pieces:
        out += piece if check.is_done else check.new(piece)
    return out


@given(
    st.lists(st.text(max_size=8), min_size=1, max_size=12),
    st.integers(0, 10_000),
    st.lists(st.integers(0, 10_000), max_size=8),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_every_byte_comes_once_wherever_it_is_cut(
    texts: list[str], cut: int, before: list[int], after: list[int]
) -> None:
    whole = b"".join(event(text) for text in texts)
    sent = whole[: 1 + cut % len(whole)]
    transcript = Transcript()
    for piece in pieces_of(sent, before):
        transcript.sent(piece)
    check = transcript.check()
    assert not check.is_done
    assert sent + passed(check, pieces_of(whole, after)) == whole
    assert check.is_done


@given(st.lists(st.text(max_size=8), min_size=1, max_size=8), st.integers(0, 10_000), st.integers(0, 10_000))
def test_what_differs_in_what_was_sent_is_refused(texts: list[str], at: int, cut: int) -> None:
    sent = b"".join(event(text) for text in texts)
    transcript = Transcript()
    transcript.sent(sent)
    other = bytearray(sent)
    other[at % len(other)] ^= 1
    with pytest.raises(ResumeFailed, match="did not make again"):
        passed(transcript.check(), pieces_of(bytes(other), [cut]))


@given(
    st.lists(st.tuples(st.text(max_size=8), st.floats(-9, 0), st.floats(-9, 0)), min_size=1, max_size=8),
    st.integers(0, 10_000),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_log_probabilities_are_sent_once_and_not_compared(
    events: list[tuple[str, float, float]], cut: int, after: list[int]
) -> None:
    ours = [event(text, logprobs={"token_logprobs": [logprob]}) for text, logprob, _ in events]
    again = [event(text, logprobs={"token_logprobs": [logprob]}) for text, _, logprob in events]
    num_sent = 1 + cut % len(events)
    transcript = Transcript(with_logprobs=True)
    for piece in ours[:num_sent]:
        transcript.sent(piece)
    out = passed(transcript.check(), pieces_of(b"".join(again), after))
    assert out == b"".join(again[num_sent:])


def test_other_text_with_log_probabilities_is_refused() -> None:
    transcript = Transcript(with_logprobs=True)
    transcript.sent(event("sea", logprobs={"token_logprobs": [-1.0]}))
    with pytest.raises(ResumeFailed):
        transcript.check().new(event("sky", logprobs={"token_logprobs": [-1.0]}))
    with pytest.raises(ResumeFailed):
        transcript.check().new(event("a longer text", logprobs=None))


def test_half_an_event_with_log_probabilities_cannot_be_resumed() -> None:
    transcript = Transcript(with_logprobs=True)
    transcript.sent(event("sea")[:-3])
    with pytest.raises(ResumeFailed, match="within an event"):
        transcript.order()


@given(GROUPS)
def test_the_order_names_tokens_and_groups_as_they_were_told(groups: list[list[int]]) -> None:
    transcript = Transcript()
    for group in groups:
        transcript.took(tokens_to_pb(group), [] if len(group) == 1 else [len(group)])
    order = transcript.order()
    assert list(order.groups()) == groups
    assert transcript.num_tokens == sum(map(len, groups))
    if all(len(group) == 1 for group in groups):
        assert not order.group_sizes


def test_tokens_without_groups_are_alone() -> None:
    transcript = Transcript()
    transcript.took(tokens_to_pb([5, 6]), [])
    transcript.took(tokens_to_pb([7, 8]), [2])
    assert list(transcript.order().groups()) == [[5], [6], [7, 8]]


def test_the_time_of_creation_is_that_of_the_first_event() -> None:
    transcript = Transcript()
    assert transcript.order().created == 0
    transcript.sent(event("sea"))
    transcript.sent(event("sea").replace(b"1700000000", b"1800000000"))
    assert transcript.order().created == 1_700_000_000


def test_a_stream_is_complete_once_its_end_was_sent() -> None:
    transcript = Transcript()
    assert not transcript.is_complete
    transcript.sent(event("sea"))
    assert not transcript.is_complete
    transcript.sent(event("calm") + b"data: [DONE]\n\n")
    assert transcript.is_complete


@pytest.mark.parametrize(
    "data", [b"data: [DONE]\n\n", b": comment\n\n", b'data: {"error": {}}\n\n', b'data: {"choices": 3}\n\n']
)
def test_what_holds_no_log_probabilities_stays(data: bytes) -> None:
    assert without_logprobs(data) == data
