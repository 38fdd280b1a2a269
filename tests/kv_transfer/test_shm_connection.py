"""Where a payload lies, as it travels.

Invariants: what was said is read; a record that cannot be right is refused by its head, before more of it is awaited.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CorruptFrame
from kv_transfer.frames import HEADER_BYTES, Kind, blocks_header
from kv_transfer.shm_connection import Connection, Stream, place, read_place
from kv_transfer.shm_memory import CACHE, STAGING, Mark

START = struct.pack("<BIQ", 0xF0, 0, 1).ljust(HEADER_BYTES, b"\0")


@given(
    st.sampled_from([STAGING, CACHE]),
    st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=9),
    st.integers(1, 99),
)
def test_what_was_said_is_read(memory: int, offsets: list[int], size: int) -> None:
    body = place(memory, struct.pack(f"<{len(offsets)}Q", *offsets))
    found, places, piece_bytes = read_place(body, size * len(offsets))
    assert (found, places.tolist(), piece_bytes) == (memory, offsets, size)


@pytest.mark.parametrize(("memory", "count", "size"), [(2, 1, 8), (STAGING, 0, 8), (CACHE, 3, 8)])
def test_a_payload_that_cannot_lie_so_is_corrupt(memory: int, count: int, size: int) -> None:
    with pytest.raises(CorruptFrame, match="cannot lie"):
        read_place(struct.pack(f"<II{count}Q", memory, count, *range(count)), size)


async def served(data: bytes) -> Stream:
    """Have a connection take what a peer sent; return the stream that the peer started."""
    streams: list[Stream] = []

    def start(connection: Connection, stream: Stream, mark: Mark) -> None:
        streams.append(stream)

    connection = Connection(start, lambda it: None, lambda it: None)
    for index in range(len(data)):  # as slowly as it may come
        connection.data_received(data[index : index + 1])
    return streams[0]


async def test_a_record_is_taken_when_all_of_its_places_have_come() -> None:
    header = blocks_header(1, 0, 0, 1, memoryview(bytes(48)))
    body = place(CACHE, struct.pack("<3Q", 7, 1, 4))
    record = await (await served(START + header + body)).next_record()
    assert (record.header.kind, record.header.size, record.body) == (Kind.BLOCKS, 48, body)


async def test_more_places_than_there_may_be_are_refused_by_their_number() -> None:
    header = blocks_header(1, 0, 0, 1, memoryview(bytes(48)))
    stream = await served(START + header + struct.pack("<II", CACHE, (1 << 16) + 1))
    with pytest.raises(CorruptFrame, match="65537 pieces"):
        await stream.next_record()
