"""Whatever is copied has the digest of the whole."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.copying import copy_hashed, gather_hashed, land_rows
from kv_transfer.frames import Digest
from kv_transfer.rows import Rows

PIECE_BYTES = 128 << 10  # above and below it copies are made differently
DATA = random.Random(1).randbytes(3 * PIECE_BYTES)
WAIT_S = 30.0


@given(st.integers(0, PIECE_BYTES), st.integers(0, 2 * PIECE_BYTES))
def test_copy_of_any_size_has_the_digest_of_the_whole(start: int, size: int) -> None:
    source, target, digest = memoryview(DATA)[start : start + size], memoryview(bytearray(size)), Digest()
    copy_hashed(target, source, digest)
    assert target == source
    assert digest.intdigest() == xxhash.xxh3_64_intdigest(source)


def rows_of(data: np.ndarray[Any, np.dtype[np.uint8]], starts: Sequence[int], size: int) -> Rows:
    addresses = np.array([data.ctypes.data + start for start in starts], dtype=np.uint64)
    return Rows(addresses, size, lambda: [memoryview(data)[start : start + size] for start in starts])


SOURCE = np.frombuffer(DATA, dtype=np.uint8)


@given(st.integers(1, 4000), st.lists(st.integers(0, 2 * PIECE_BYTES), min_size=1, max_size=9), st.data())
def test_pieces_land_in_rows_cut_as_they_may_be(size: int, starts: list[int], data: st.DataObject) -> None:
    total = size * len(starts)
    cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=4)))
    target = memoryview(bytearray(total))
    rows = [target[start:end] for start, end in pairwise([0, *cuts, total])]
    expected = b"".join(DATA[start : start + size] for start in starts)
    assert land_rows(rows, rows_of(SOURCE, starts, size)) == xxhash.xxh3_64_intdigest(expected)
    assert target == expected


@given(
    st.integers(1, 3).map(lambda count: count * 64) | st.integers(1, 9000),
    st.integers(1, 4),
    st.lists(st.integers(0, PIECE_BYTES), min_size=1, max_size=6),
)
def test_pieces_land_in_rows_of_their_size_or_of_a_part_of_it(size: int, parts: int, starts: list[int]) -> None:
    total = size * parts * len(starts)
    target = np.zeros(total + 64, dtype=np.uint8)
    at = -target.ctypes.data % 64  # the rows begin where a line of the processor's cache does
    rows = rows_of(target, range(at, at + total, size), size)
    expected = b"".join(DATA[start : start + size * parts] for start in starts)
    assert land_rows(rows, rows_of(SOURCE, starts, size * parts)) == xxhash.xxh3_64_intdigest(expected)
    assert target.tobytes() == bytes(at) + expected + bytes(64 - at)


@given(st.integers(1, 3 * PIECE_BYTES // 4), st.lists(st.integers(0, 3), max_size=9))
def test_gathered_rows_lie_back_to_back(row_bytes: int, ids: list[int]) -> None:
    rows = np.frombuffer(DATA, dtype=np.uint8)[: 4 * row_bytes].reshape(4, row_bytes)
    target, digest = bytearray(len(ids) * row_bytes), Digest()
    gather_hashed(memoryview(target), rows, ids, digest)
    assert target == b"".join(rows[index].tobytes() for index in ids)
    assert digest.intdigest() == xxhash.xxh3_64_intdigest(target)


@pytest.mark.parametrize("ids", [[4], [-1], [0, 4]])
def test_a_row_that_is_not_there_is_refused(ids: list[int]) -> None:
    with pytest.raises(IndexError, match="of 4"):
        gather_hashed(memoryview(bytearray(8 * len(ids))), np.zeros((4, 8), dtype=np.uint8), ids, Digest())


@pytest.fixture
def unasked() -> Iterator[None]:
    """Have no thread give up Python's lock because another waits for it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(10 * WAIT_S)
    yield
    sys.setswitchinterval(before)


def _gather() -> None:
    rows = np.frombuffer(DATA, dtype=np.uint8).reshape(6, -1)
    gather_hashed(memoryview(bytearray(len(DATA))), rows, range(6), Digest())


def _land() -> None:
    target = np.zeros(len(DATA), dtype=np.uint8)
    size = PIECE_BYTES // 2
    land_rows(rows_of(target, range(0, len(DATA), size), size), rows_of(SOURCE, [0], len(DATA)))


@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("copy", [_gather, _land])
def test_another_thread_runs_while_large_rows_are_copied(copy: Callable[[], None]) -> None:
    ran: list[bool] = []
    woken = threading.Event()
    other = threading.Thread(target=lambda: (woken.wait(), ran.append(True)))
    other.start()
    woken.set()
    deadline_s = time.monotonic() + WAIT_S
    while not ran and time.monotonic() < deadline_s:
        copy()
    assert ran
    other.join()
