"""Staging memory.

Invariants: segments in use never overlap; used bytes are those of all segments in use; when all are given back, a
segment of the whole size fits again.
"""

from __future__ import annotations

import errno
import os
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transfer.staging import CHUNK_BYTES, GROWTH_BYTES, Segment, StagingPool

CHUNKS = 24
SIZES = st.integers(1, 9 * CHUNK_BYTES)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(SIZES, st.integers(-40, -1)), max_size=60))
def test_segments_never_overlap_and_all_comes_back(steps: list[int]) -> None:
    pool = StagingPool(CHUNKS * CHUNK_BYTES - 1)
    held: list[Segment] = []
    for step in steps:
        if step > 0:
            segment = pool.take(step)
            if segment is not None:
                assert segment.view.nbytes == step
                held.append(segment)
        elif held:
            pool.give_back(held.pop(step % len(held)))
        spans = sorted((s.offset, s.offset + s.num_chunks * CHUNK_BYTES) for s in held)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert pool.used_bytes == sum(s.num_chunks for s in held) * CHUNK_BYTES
    for segment in held:
        pool.give_back(segment)
    assert pool.take(CHUNKS * CHUNK_BYTES) is not None
    assert pool.take(1) is None
    held.clear()
    pool.close()


def test_memory_is_allocated_up_to_what_was_in_use_at_once() -> None:
    pool = StagingPool(4 * GROWTH_BYTES)
    assert os.fstat(pool.fd).st_blocks == 0
    for _ in range(9):
        held = [pool.take(GROWTH_BYTES // 4) for _ in range(3)]
        for segment in held:
            assert segment is not None
            segment.view[-1] = 1
            pool.give_back(segment)
    assert pool.allocated_bytes == os.fstat(pool.fd).st_size == GROWTH_BYTES
    assert pool.take(GROWTH_BYTES + 1) is not None
    assert pool.allocated_bytes == os.fstat(pool.fd).st_size == 2 * GROWTH_BYTES
    pool.close()


def test_no_memory_left_is_like_no_place_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    pool = StagingPool(2 * GROWTH_BYTES)
    segment = pool.take(1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", refuse)
        assert pool.take(GROWTH_BYTES) is None
    assert segment is not None
    pool.give_back(segment)
    assert pool.used_bytes == 0
    assert pool.take(2 * GROWTH_BYTES) is not None
    pool.close()


def test_the_region_is_readable_by_its_descriptor() -> None:
    pool = StagingPool(1)
    segment = pool.take(5)
    assert segment is not None
    segment.view[:] = b"baton"
    assert os.pread(pool.fd, 5, segment.offset) == b"baton"
    pool.close()
    pool.close()
    assert bytes(segment.view) == b"baton"  # what is held stays valid
