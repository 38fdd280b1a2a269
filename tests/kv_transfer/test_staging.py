"""Staging memory.

Invariants: segments in use never overlap; used bytes are those of all segments in use; when all are given back, a
segment of the whole size fits again.
"""

from __future__ import annotations

import os
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transfer.staging import CHUNK_BYTES, Segment, StagingPool

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


def test_the_region_is_readable_by_its_descriptor() -> None:
    pool = StagingPool(1)
    segment = pool.take(5)
    assert segment is not None
    segment.view[:] = b"baton"
    assert os.pread(pool.fd, 5, segment.offset) == b"baton"
    pool.close()
    pool.close()
    assert bytes(segment.view) == b"baton"  # what is held stays valid
