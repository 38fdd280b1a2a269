"""A cache that was moved in place.

Invariants: it holds what it held, before, meanwhile and after; what peers read at a block's offset is that block; only
whole pages of the cache are moved; nobody else can write or shrink it.
"""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transfer.shared_cache import OFFSET, SharedCache

PAGE_BYTES = mmap.PAGESIZE


def layers_of(data: bytearray, num_layers: int, size: int) -> list[memoryview]:
    return [memoryview(data)[index * size : (index + 1) * size] for index in range(num_layers)]


def filled(size: int, seed: int) -> bytearray:
    return bytearray(np.random.default_rng(seed).bytes(size))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from([64, 1000, PAGE_BYTES, 3 * PAGE_BYTES, 5000]),
    st.integers(0, 1 << 20),
)
def test_peers_read_each_block_at_its_offset_and_the_engine_as_before(
    num_layers: int, num_blocks: int, block_bytes: int, seed: int
) -> None:
    data = filled(num_layers * num_blocks * block_bytes, seed)
    layers = layers_of(data, num_layers, num_blocks * block_bytes)
    before = bytes(data)
    shared = SharedCache(layers, block_bytes)
    assert bytes(data) == before
    assert shared.size_bytes % PAGE_BYTES == 0
    assert len(data) - 2 * PAGE_BYTES < shared.size_bytes <= len(data)
    data[:] = expected = filled(len(data), seed + 1)
    for layer, view in enumerate(layers):
        ids = [block for block in range(num_blocks) if shared.has(layer, [block])]
        for block, (offset,) in zip(ids, OFFSET.iter_unpack(shared.offsets(range(layer, layer + 1), ids)), strict=True):
            assert os.pread(shared.fd, block_bytes, offset) == view[block * block_bytes : (block + 1) * block_bytes]
    shared.close()
    shared.close()
    assert data == expected
    data[:] = before


def test_blocks_that_reach_into_an_edge_are_not_shared() -> None:
    data = filled(64 * PAGE_BYTES, 1)
    shared = SharedCache([memoryview(data)], PAGE_BYTES)
    assert shared.size_bytes == 63 * PAGE_BYTES  # malloc's header is in the first page, so that none is left whole
    assert not shared.has(0, [0, 5])
    assert shared.has(0, [1, 5, 62])
    assert not shared.has(0, [5, 63])
    assert not shared.has(0, [])
    shared.close()


def test_a_cache_without_a_whole_page_shares_nothing() -> None:
    data = filled(100, 1)
    shared = SharedCache([memoryview(data)], 10)
    assert shared.size_bytes == 0
    assert not shared.has(0, [1])
    shared.close()


def test_nobody_else_can_write_or_shrink_it() -> None:
    data = filled(8 * PAGE_BYTES, 1)
    shared = SharedCache([memoryview(data)], PAGE_BYTES)
    with pytest.raises(PermissionError):
        os.ftruncate(shared.fd, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(shared.fd, shared.size_bytes, prot=mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.pwrite(shared.fd, b"x", 0)
    with mmap.mmap(shared.fd, shared.size_bytes, prot=mmap.PROT_READ) as peer:
        data[2 * PAGE_BYTES : 3 * PAGE_BYTES] = b"k" * PAGE_BYTES
        assert peer.find(b"k" * PAGE_BYTES) >= 0
        shared.close()
        data[:] = bytes(len(data))
        assert peer.find(b"k" * PAGE_BYTES) >= 0  # the engine's memory is another one again
    assert "baton-kv-cache" not in Path("/proc/self/maps").read_text()


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Have the system refuse memory beyond `size` to a memfd."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_moved_stays_as_it_was() -> None:
    data = filled(8 * PAGE_BYTES, 1)
    before, num_descriptors = bytes(data), len(os.listdir("/proc/self/fd"))
    with no_file_above(PAGE_BYTES), pytest.raises(OSError, match="too large"):
        SharedCache([memoryview(data)], PAGE_BYTES)
    assert bytes(data) == before
    assert len(os.listdir("/proc/self/fd")) == num_descriptors
