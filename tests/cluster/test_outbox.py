"""The outbox loses, repeats and reorders nothing within a call, and counts what is unsent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster import codec
from cluster.outbox import Outbox

actions = st.lists(st.tuples(st.sampled_from(["body", "take", "drop"]), st.integers(1, 3), st.binary(min_size=1)))


@given(actions)
def test_chunks_carry_every_byte_once_and_in_order(steps: list[tuple[str, int, bytes]]) -> None:
    """Invariants: bytes per call are kept in order; unsent_bytes counts exactly what `take` would give."""
    outbox = Outbox()
    sent: dict[int, bytes] = {1: b"", 2: b"", 3: b""}
    unsent: dict[int, bytes] = dict(sent)
    for action, call_id, data in steps:
        if action == "body":
            outbox.body(call_id, data)
            unsent[call_id] += data
        elif action == "drop":
            outbox.drop(call_id)
            unsent[call_id] = b""
        else:
            chunks = outbox.take()
            assert len({chunk.call_id for chunk in chunks}) == len(chunks)
            assert {c.call_id: c.data for c in chunks} == {i: d for i, d in unsent.items() if d}
            unsent = dict.fromkeys(unsent, b"")
        assert outbox.unsent_bytes == sum(map(len, unsent.values()))
        assert bool(outbox) == any(unsent.values())


def test_whole_reply_is_one_chunk() -> None:
    outbox = Outbox()
    outbox.start(7, 200, (("a", "b"),))
    outbox.body(7, b"x")
    outbox.body(7, b"y")
    outbox.end(7, "worker_lost", "gone")
    (chunk,) = outbox.take()
    assert (chunk.call_id, chunk.status, chunk.data, chunk.last) == (7, 200, b"xy", True)
    assert (chunk.error, chunk.error_message, chunk.headers[0].name) == ("worker_lost", "gone", "a")
    assert outbox.take() == []


def test_tokens_leave_with_the_bytes_made_of_them() -> None:
    outbox = Outbox()
    outbox.tokens(7, [5])
    outbox.body(7, b"x")
    outbox.tokens(8, [6, 7])
    outbox.tokens(8, [8])
    outbox.body(8, b"y")
    alone, together = outbox.take()
    assert (alone.data, codec.tokens_from_pb(alone.token_ids).tolist(), list(alone.group_sizes)) == (b"x", [5], [])
    assert codec.tokens_from_pb(together.token_ids).tolist() == [6, 7, 8]
    assert list(together.group_sizes) == [2, 1]
    outbox.tokens(7, [9])
    outbox.drop(7)
    assert not outbox
