"""Numbers never carry more digits than their interval allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.figures import decimals_known, figure, floored, percent, plain, with_interval
from sim.plan import Interval


@pytest.mark.parametrize(
    ("low", "mid", "high", "text"),
    [
        (13.1, 14.1983, 15.02, "14.2 (13.1..15.0)"),
        (13.92, 14.1983, 14.501, "14.20 (13.92..14.50)"),
        (5, 14, 23, "14 (5..23)"),
        (900, 1234.5, 1600, "1,230 (900..1,600)"),
        (14.1983, 14.1983, 14.1983, "14.2"),
        (0, 0, 0, "0"),
        (28.8353760, 28.8353762, 28.8353764, "28.8"),
        (2883.5, 2883.6, 2883.7, "2,880"),
        (0.0801, 0.0902, 0.1003, "0.090 (0.080..0.100)"),
    ],
)
def test_an_interval_decides_the_digits(low: float, mid: float, high: float, text: str) -> None:
    assert with_interval(Interval(low, mid, high)) == text


@pytest.mark.parametrize(
    ("low", "mid", "high", "text"),
    [
        (0.9131, 0.9333, 0.9512, "93 % (91..95)"),
        (0.9281, 0.9333, 0.9412, "93.3 % (92.8..94.1)"),
        (0.81, 0.9, 0.99, "90 % (81..99)"),
        (1.0, 1.0, 1.0, "100.0 %"),
        (0.90121, 0.90123, 0.90124, "90.1 %"),
    ],
)
def test_shares_are_percents_never_finer_than_a_tenth(low: float, mid: float, high: float, text: str) -> None:
    assert percent(Interval(low, mid, high)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(400.0, "400"), (40.04, "40"), (0.12345, "0.123"), (1.5, "1.5"), (12345.6, "12,346"), (0, "0")]
)
def test_plain_numbers_have_three_digits_and_no_zeros_at_the_end(value: float, text: str) -> None:
    assert plain(value) == text


def test_what_is_not_finite_is_a_dash() -> None:
    assert (plain(float("inf")), figure(float("nan"), 2)) == ("-", "-")


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1.0))
def test_the_last_digit_is_within_a_third_of_the_uncertainty(mid: float, width: float) -> None:
    half = mid * width / 2
    decimals = decimals_known(Interval(mid - half, mid, mid + half))
    assert half / 40 <= 10.0**-decimals or decimals == 6
    assert 10.0**-decimals <= half / 0.99 or decimals == 6


@pytest.mark.parametrize(
    ("value", "text"), [(17.58, "17.5"), (17.6, "17.6"), (0.029999, "0.0299"), (1239.9, "1,230"), (0, "0"), (9, "9")]
)
def test_what_must_not_be_exceeded_is_rounded_down(value: float, text: str) -> None:
    assert floored(value) == text
