"""Messages arrive whole and in order however the bytes were split; a length beyond the limit is never waited for."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.wire import HEARTBEAT, MessageReader, length_of
from core.errors import WorkerError

LIMIT = 300


@given(st.lists(st.binary(max_size=LIMIT), max_size=20), st.lists(st.integers(0, 6000), max_size=30))
def test_any_split_gives_the_same_messages(messages: list[bytes], cuts: list[int]) -> None:
    """Invariant: what comes out is what went in, without the empty ones, and nothing is left."""
    sent = b"".join(length_of(message) + message for message in messages)
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    reader = MessageReader(LIMIT)
    received = [message for start, end in pairwise(edges) for message in reader.feed(sent[start:end])]
    assert received == [message for message in messages if message]
    assert reader.feed(length_of(b"x") + b"x") == [b"x"]


@given(st.integers(LIMIT + 1, 2**32 - 1), st.lists(st.binary(max_size=9), max_size=3))
def test_length_beyond_the_limit_is_refused_by_its_four_bytes(size: int, before: list[bytes]) -> None:
    reader = MessageReader(LIMIT)
    for message in before:
        reader.feed(length_of(message) + message)
    *most, last = size.to_bytes(4, "big")
    assert reader.feed(bytes(most)) == []
    with pytest.raises(WorkerError, match=str(size)):
        reader.feed(bytes([last]))


def test_heart_beats_are_no_messages() -> None:
    assert MessageReader(LIMIT).feed(HEARTBEAT + length_of(b"m") + b"m" + HEARTBEAT) == [b"m"]
