"""What is copied piece by piece is hashed as a whole."""

from __future__ import annotations

import random

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.copying import PIECE_BYTES, copy_hashed, land_hashed
from kv_transfer.frames import Digest

DATA = random.Random(1).randbytes(3 * PIECE_BYTES)


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
