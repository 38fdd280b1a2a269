"""Frames made of layers.

Invariants: whatever is staged leaves, each block of each layer once, in order, in frames that verify; no frame holds
more than it may; nothing is held after `flush`.
"""

from __future__ import annotations

import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transfer import stager
from kv_transfer.block_io import BlockIO
from kv_transfer.cached_blocks import CachedBlocks
from kv_transfer.frames import read_header, transfer_seed, verify_blocks
from kv_transfer.stager import Stager
from kv_transfer.staging import Segment, StagingPool
from tests.support.kv_side import BLOCK_BYTES, BLOCKS, LAYERS, SHAPE


class Taken:
    """Verifies frames and keeps what is in them: (transfer, layer, block, bytes)."""

    def __init__(self) -> None:
        self.pool = StagingPool(1 << 20)
        self.blocks: list[tuple[str, int, int, bytes]] = []
        self.sizes: list[int] = []
        self.is_full = False
        self.stays = False
        self.num_cached = 0

    def stays_in_cache(self, transfer_id: str) -> bool:
        return self.stays

    def take(self, transfer_id: str, size: int) -> Segment | None:
        return None if self.is_full else self.pool.take(size)

    def put(
        self,
        transfer_id: str,
        segment: Segment | None,
        *,
        layer: int,
        first_block: int,
        num_blocks: int,
        header: bytes,
        cached: CachedBlocks | None = None,
    ) -> None:
        head = read_header(header)
        assert (head.layer, head.first_block, head.num_blocks) == (layer, first_block, num_blocks)
        if segment is None:
            assert cached is not None
            payload = memoryview(bytearray(cached.size_bytes))
            cached.copy_to(payload)
            assert cached.digest() == xxhash.xxh3_64_intdigest(payload)
            self.num_cached += 1
        else:
            payload = segment.view
            self.pool.give_back(segment)
        verify_blocks(head, transfer_seed(transfer_id), [payload])
        for index, start in enumerate(range(0, head.size, BLOCK_BYTES)):
            above, block = divmod(index, num_blocks)
            content = bytes(payload[start : start + BLOCK_BYTES])
            self.blocks.append((transfer_id, layer + above, first_block + block, content))
        self.sizes.append(head.size)


def cache_io() -> tuple[BlockIO, list[torch.Tensor]]:
    """Make a cache of which no two blocks are alike."""
    generator = torch.Generator().manual_seed(1)
    layers = [torch.randint(0, 255, (BLOCKS, *SHAPE), generator=generator, dtype=torch.uint8) for _ in range(LAYERS)]
    return BlockIO({f"layer.{index}": layer for index, layer in enumerate(layers)}), layers


@settings(deadline=None)
@given(
    st.integers(0, 8),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.integers(1, 6)), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_every_block_of_every_layer_leaves_once(
    group_blocks: int, ranges: list[tuple[str, int, int]], flush_often: bool, stays: bool
) -> None:
    io, layers = cache_io()
    io.share()
    frames = Taken()
    frames.stays = stays
    staging = Stager(io, frames, group_blocks * BLOCK_BYTES)
    expected = []
    for layer in range(LAYERS):
        for transfer, first, count in ranges:
            ids = [(first + index * 3) % BLOCKS for index in range(count)]
            staging.stage(transfer, layer, first, ids, stays=True)
            expected += [(transfer, layer, first + i, layers[layer][b].numpy().tobytes()) for i, b in enumerate(ids)]
        if flush_often:
            staging.flush()
    staging.flush()
    for transfer in "ab":
        mine = [block[1:] for block in frames.blocks if block[0] == transfer]
        assert mine == [block[1:] for block in expected if block[0] == transfer]
    assert frames.pool.used_bytes == 0
    assert max(frames.sizes) <= max(group_blocks, 6) * BLOCK_BYTES
    assert stays or not frames.num_cached
    frames.pool.close()
    io.close()


def test_long_layer_leaves_in_frames_of_even_size() -> None:
    long_io = BlockIO({"layer": torch.zeros((70, stager.FRAME_BYTES // 32), dtype=torch.uint8)})

    class Sizes(Taken):
        def put(
            self,
            transfer_id: str,
            segment: Segment | None,
            *,
            layer: int,
            first_block: int,
            num_blocks: int,
            header: bytes,
            cached: CachedBlocks | None = None,
        ) -> None:
            self.sizes.append(num_blocks)
            if segment is not None:
                self.pool.give_back(segment)

    sizes = Sizes()
    sizes.pool = StagingPool(stager.FRAME_BYTES)
    Stager(long_io, sizes).stage("a", 0, 0, range(65))
    assert sizes.sizes == [21, 22, 22]
    sizes.sizes.clear()
    sizes.stays = True
    long_io.share()
    Stager(long_io, sizes).stage("a", 0, 0, range(1, 66), stays=True)
    assert sizes.sizes == [65]
    long_io.close()
    sizes.pool.close()


def test_nothing_is_staged_while_there_is_no_memory() -> None:
    io, _ = cache_io()
    frames = Taken()
    staging = Stager(io, frames)
    frames.is_full = True
    staging.stage("a", 0, 0, [1, 2])
    frames.is_full = False
    for layer in (1, 2):
        staging.stage("a", layer, 0, [1, 2])
    assert [block[1:3] for block in frames.blocks] == [(layer, block) for layer in (1, 2) for block in (0, 1)]
    frames.pool.close()
