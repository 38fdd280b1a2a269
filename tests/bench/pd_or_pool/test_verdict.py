"""Goodput from a few rates, its interval, and who keeps more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.pd_or_pool.verdict import APART, POOL, UNCLEAR, agree, compare, goodput, merged

SHARES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6)


def kept(count: int, share: float) -> NDArray[np.bool_]:
    """Spread the share evenly over so many requests."""
    found: NDArray[np.bool_] = np.floor(np.arange(1, count + 1) * share) > np.floor(np.arange(count) * share)
    return found


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({1.0: 1.0, 2.0: 0.8}, 1.5),  # straight between the rates
        ({1.0: 0.8, 2.0: 1.0}, 0.0),  # not even the lowest
        ({1.0: 1.0, 2.0: 0.95}, 2.0),  # never
        ({1.0: 1.0, 2.0: 0.5, 3.0: 1.0}, 1.2),  # what is lost once is lost
    ],
)
def test_goodput_is_where_the_promise_is_first_missed(shares: dict[float, float], expected: float) -> None:
    assert goodput(shares, 0.9) == pytest.approx(expected)


@given(SHARES, st.floats(0.01, 1.0))
def test_a_better_share_at_any_rate_never_lowers_goodput(shares: list[float], more: float) -> None:
    lower = {float(rate): share for rate, share in enumerate(shares, 1)}
    for rate in lower:
        higher = lower | {rate: min(1.0, lower[rate] + more)}
        assert goodput(higher, 0.9) >= goodput(lower, 0.9) - 1e-9


def test_a_clear_difference_is_seen_either_way() -> None:
    good = {rate: kept(100, share) for rate, share in ((1.0, 1.0), (2.0, 0.97), (3.0, 0.5))}
    bad = {rate: kept(100, share) for rate, share in ((1.0, 0.97), (2.0, 0.5), (3.0, 0.1))}
    assert compare(good, bad, 0.9).verdict == APART
    found = compare(bad, good, 0.9)
    assert found.verdict == POOL
    assert found.apart.low <= found.apart.mid <= found.apart.high < found.pool.low <= found.pool.mid
    assert found.top == 3.0


def test_equal_systems_do_not_differ() -> None:
    same = {1.0: kept(60, 0.95), 2.0: kept(60, 0.7)}
    assert compare(same, same, 0.9).verdict == UNCLEAR


def test_both_must_have_been_asked_the_same() -> None:
    with pytest.raises(ValueError, match="asked the same"):
        compare({1.0: kept(60, 1.0)}, {1.0: kept(61, 1.0)}, 0.9)
    with pytest.raises(ValueError, match="asked the same"):
        compare({1.0: kept(60, 1.0)}, {2.0: kept(60, 1.0)}, 0.9)


def test_turns_are_put_together_rate_by_rate() -> None:
    found = merged([{2.0: kept(3, 1.0), 1.0: kept(2, 0.0)}, {1.0: kept(1, 1.0), 2.0: kept(4, 0.0)}])
    assert {rate: (len(each), int(each.sum())) for rate, each in found.items()} == {1.0: (3, 1), 2.0: (7, 3)}
    assert list(found) == [1.0, 2.0]


def test_doubt_contradicts_nothing() -> None:
    assert agree(APART, APART) == "yes"
    assert agree(APART, POOL) == "no"
    assert agree(APART, UNCLEAR) == agree(UNCLEAR, POOL) == "neither contradicts"
