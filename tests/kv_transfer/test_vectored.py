"""Rows copied and digested in one call.

Invariants: the digest is xxh3 of the rows back to back, whatever their size and place; what is copied is there, and
nothing beside it is touched.
"""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transfer.vectored import RowDigest, prepare

SOURCE = np.random.default_rng(1).integers(0, 256, 40_000, dtype=np.uint8)
GUARD_BYTES = 64
SIZES = st.integers(1, 200) | st.sampled_from([64, 4095, 4096, 4097, 4096 + 64, 8192])


def addresses(data: np.ndarray[tuple[int], np.dtype[np.uint8]], starts: list[int]) -> np.ndarray:  # type: ignore[type-arg]
    return np.array([data.ctypes.data + start for start in starts], dtype=np.uint64)


@settings(deadline=None)
@given(SIZES, st.lists(st.integers(0, len(SOURCE) - 8192), max_size=6), st.integers(0, 3))
def test_digest_is_that_of_the_rows_back_to_back(size: int, starts: list[int], cut: int) -> None:
    assert prepare()
    digest = RowDigest()
    digest.feed(addresses(SOURCE, starts[:cut]), size)
    digest.feed(addresses(SOURCE, starts[cut:]), size)
    expected = b"".join(SOURCE[start : start + size].tobytes() for start in starts)
    assert digest.intdigest() == xxhash.xxh3_64_intdigest(expected)


@settings(deadline=None)
@given(
    SIZES,
    st.lists(st.integers(0, len(SOURCE) - 8192), min_size=1, max_size=6),
    st.sampled_from([0, 1, 32, 63]),
    st.randoms(use_true_random=False),
)
def test_rows_land_whole_and_nothing_beside_them(size: int, starts: list[int], shift: int, random: object) -> None:
    stride = -(-size // 64) * 64 + GUARD_BYTES
    target = np.zeros(stride * len(starts) + 192, dtype=np.uint8)
    first = -target.ctypes.data % 64 + shift
    places = [first + index * stride for index in range(len(starts))]
    places.sort(key=lambda _: random.random())  # type: ignore[attr-defined]
    digest = RowDigest()
    digest.land(addresses(target, places), addresses(SOURCE, starts), size)
    expected = np.zeros_like(target)
    for place, start in zip(places, starts, strict=True):
        expected[place : place + size] = SOURCE[start : start + size]
    assert (target == expected).all()
    landed = b"".join(SOURCE[start : start + size].tobytes() for start in starts)
    assert digest.intdigest() == xxhash.xxh3_64_intdigest(landed)


def test_a_row_without_a_source_is_refused() -> None:
    target = np.zeros(128, dtype=np.uint8)
    with pytest.raises(ValueError, match="2 rows of 1 sources"):
        RowDigest().land(addresses(target, [0, 64]), addresses(SOURCE, [0]), 64)
    assert not target.any()
