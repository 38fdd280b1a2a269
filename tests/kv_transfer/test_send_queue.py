"""The queue of one hand-over.

Invariants: frames leave in the order they were put, each that the peer lacks and none other; memory is given back once
for each frame, when it has landed or the queue closes; a stream goes on exactly after what has landed.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import CorruptFrame
from kv_transfer.frames import blocks_header, read_header, transfer_seed, verify_blocks
from kv_transfer.send_queue import SendQueue
from kv_transfer.staging import CHUNK_BYTES, StagingPool

BLOCK = 16
SEED = transfer_seed("t")


def put(queue: SendQueue, pool: StagingPool, first: int, count: int) -> None:
    segment = pool.take(count * BLOCK)
    assert segment is not None
    segment.view[:] = bytes((first + index // BLOCK) % 256 for index in range(count * BLOCK))
    header = blocks_header(SEED, 0, first, count, segment.view)
    queue.put(segment, layer=0, first_block=first, num_blocks=count, header=header)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=12),
    st.integers(0, 20),
    st.integers(1, 200),
    st.sets(st.integers(0, 30)),
    st.integers(1, 4),
)
def test_every_needed_block_leaves_and_a_new_stream_goes_on(
    counts: list[int], needed: int, batch: int, breaks: set[int], ack_every: int
) -> None:
    pool = StagingPool(16 * CHUNK_BYTES)
    queue = SendQueue(pool, seed=SEED, block_bytes=BLOCK)
    first = 0
    for count in counts:
        put(queue, pool, first, count)
        first += count
    queue.go_on(first_needed=needed, landed=0)
    arrived: list[int] = []  # blocks of frames that landed
    frames_landed = sent = 0
    while True:
        for frame in queue.take(batch):
            sent += 1
            if sent in breaks:  # the stream breaks before this frame
                queue.go_on(first_needed=needed, landed=frames_landed)
                break
            header = read_header(frame.header)
            verify_blocks(header, SEED, [frame.payload])
            assert bytes(frame.payload)[::BLOCK] == bytes(
                range(header.first_block, header.first_block + header.num_blocks)
            )
            arrived += range(header.first_block, header.first_block + header.num_blocks)
            frames_landed += 1
            if frames_landed % ack_every == 0:
                queue.acknowledge(frames_landed)
        else:
            if not queue.take(batch):
                break
            queue.go_on(first_needed=needed, landed=frames_landed)
    assert arrived == list(range(min(needed, first), first))
    assert queue.num_bytes == len(arrived) * BLOCK
    queue.acknowledge(frames_landed)
    assert pool.used_bytes == 0
    queue.close()
    pool.close()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 5), st.booleans())
def test_frame_of_several_layers_leaves_without_what_the_peer_has(
    layers: int, count: int, needed: int, lands: bool
) -> None:
    pool = StagingPool(16 * CHUNK_BYTES)
    queue = SendQueue(pool, seed=SEED, block_bytes=BLOCK)
    segment = pool.take(layers * count * BLOCK)
    assert segment is not None
    segment.view[:] = bytes(index // BLOCK for index in range(layers * count * BLOCK))
    queue.put(segment, layer=3, first_block=1, num_blocks=count, header=blocks_header(SEED, 3, 1, count, segment.view))
    queue.go_on(first_needed=needed, landed=0)
    arrived = []  # (layer, block, content)
    frames = queue.take(1 << 20)
    for frame in frames:
        header = read_header(frame.header)
        verify_blocks(header, SEED, [frame.payload])
        assert bytes(pool._view[frame.offset : frame.offset + header.size]) == frame.payload
        for index, content in enumerate(bytes(frame.payload)[::BLOCK]):
            layer, block = divmod(index, header.num_blocks)
            arrived.append((header.layer + layer, header.first_block + block, content))
    wanted = range(max(needed, 1), count + 1)
    assert arrived == [(3 + layer, block, layer * count + block - 1) for layer in range(layers) for block in wanted]
    if lands:
        for number in range(len(frames)):
            assert pool.used_bytes == segment.num_chunks * CHUNK_BYTES
            queue.acknowledge(number + 1)
        assert pool.used_bytes == 0
    queue.close()
    assert pool.used_bytes == 0
    pool.close()


@pytest.mark.parametrize("landed", [0, 3])
def test_impossible_acknowledgement_is_refused(landed: int) -> None:
    pool = StagingPool(4 * CHUNK_BYTES)
    queue = SendQueue(pool, seed=SEED, block_bytes=BLOCK)
    for first in range(2):
        put(queue, pool, first, 1)
    assert len(queue.take(1 << 20)) == 2
    queue.acknowledge(1)
    with pytest.raises(CorruptFrame):
        queue.acknowledge(landed)
    queue.close()
    assert pool.used_bytes == 0
    put(queue, pool, 0, 1)  # too late: given back at once
    assert pool.used_bytes == 0
    pool.close()
