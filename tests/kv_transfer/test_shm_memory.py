"""What a receiver sees of a sender's memory.

Invariants: pieces are those at their offsets, in staging memory or cache; nothing outside is touched; what was not
passed is not there.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import CorruptFrame, TransferAborted
from kv_transfer.shared_cache import SharedCache
from kv_transfer.shm_memory import CACHE, STAGING, Board, PeerMemory
from kv_transfer.staging import StagingPool

SIZE = 4 * mmap.PAGESIZE


@pytest.fixture(scope="module")
def memory() -> Iterator[tuple[PeerMemory, bytes, bytes]]:
    """A sender's memory as the receiver has it, with the content of both regions."""
    pool, board = StagingPool(1 << 16), Board()
    segment = pool.take(1 << 16)
    assert segment is not None
    segment.view[:] = staged = np.random.default_rng(1).bytes(1 << 16)
    cache = mmap.mmap(-1, SIZE)
    cache[:] = cached = np.random.default_rng(2).bytes(SIZE)
    shared = SharedCache([memoryview(cache)], mmap.PAGESIZE)
    peer = PeerMemory(pool.fd, board.fd, shared.fd)
    yield peer, staged, cached
    peer.close()
    with pytest.raises(TransferAborted):
        peer.read(CACHE, np.array([0], dtype=np.uint64), 1)
    shared.close()
    board.close()
    pool.close()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=5), st.integers(1, SIZE))
def test_pieces_are_those_at_their_offsets_or_corrupt(
    memory: tuple[PeerMemory, bytes, bytes], offsets: list[int], size: int
) -> None:
    peer, staged, cached = memory
    for which, content in ((STAGING, staged), (CACHE, cached)):
        if max(offsets) + size > len(content):
            with pytest.raises(CorruptFrame, match="outside"):
                peer.read(which, np.array(offsets, dtype=np.uint64), size)
            continue
        rows = peer.read(which, np.array(offsets, dtype=np.uint64), size)
        assert list(rows) == [content[at : at + size] for at in offsets]
        assert len(rows.addresses) == len(offsets)


@pytest.mark.parametrize("offset", [SIZE, (1 << 63) - 1, (1 << 64) - 1])
def test_no_offset_is_large_enough_to_come_round(memory: tuple[PeerMemory, bytes, bytes], offset: int) -> None:
    with pytest.raises(CorruptFrame, match="outside"):
        memory[0].read(CACHE, np.array([0, offset], dtype=np.uint64), 1)


def test_a_cache_that_was_not_passed_is_empty() -> None:
    pool, board = StagingPool(1 << 16), Board()
    peer = PeerMemory(pool.fd, board.fd)
    with pytest.raises(CorruptFrame, match="outside"):
        peer.read(CACHE, np.array([0], dtype=np.uint64), 1)
    peer.close()
    board.close()
    pool.close()


def test_a_stream_may_be_revoked_whatever_has_become_of_it() -> None:
    board = Board()
    peer = PeerMemory(board.fd, board.fd)
    first, second = board.begin(), board.begin()
    board.revoke(first)
    assert (peer.is_live(first), peer.is_live(second)) == (False, True)
    board.end(first)
    third = board.begin()  # in the place of the first
    assert third.slot == first.slot
    board.revoke(first)
    assert peer.is_live(third)
    board.close()
    board.revoke(second)
    peer.close()
