"""Whatever is copied has the digest of the whole."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.copying import copy_hashed, gather_hashed, land_hashed
from kv_transfer.frames import Digest

PIECE_BYTES = 128 << 10  # above and below it copies are made differently
DATA = random.Random(1).randbytes(3 * PIECE_BYTES)
WAIT_S = 30.0


@given(st.integers(0, PIECE_BYTES), st.integers(0, 2 * PIECE_BYTES))
def test_copy_of_any_size_has_the_digest_of_the_whole(start: int, size: int) -> None:
    source, target, digest = memoryview(DATA)[start : start + size], memoryview(bytearray(size)), Digest()
    copy_hashed(target, source, digest)
    assert target == source
    assert digest.intdigest() == xxhash.xxh3_64_intdigest(source)


@given(st.lists(st.integers(0, PIECE_BYTES), max_size=3))
def test_rows_are_filled_in_turn(sizes: list[int]) -> None:
    rows = [memoryview(bytearray(size)) for size in sizes]
    source = memoryview(DATA)[: sum(sizes)]
    assert land_hashed(rows, source) == xxhash.xxh3_64_intdigest(source)
    assert b"".join(rows) == source


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
    land_hashed([memoryview(bytearray(PIECE_BYTES // 2)) for _ in range(6)], memoryview(DATA))


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
