"""Forecasts of the arrival rate: constant, rising and daily traffic, and the error they tell."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.control.arrivals import ArrivalForecast

EVERY_S, HORIZON_S, DAY_S = 10.0, 120.0, 86_400.0


def test_a_constant_rate_is_forecast_with_little_error() -> None:
    forecast = ArrivalForecast()
    for step in range(200):
        forecast.observe(500, EVERY_S, step * EVERY_S)
        found = forecast.forecast(step * EVERY_S, HORIZON_S)
    assert found.rate == pytest.approx(50.0)
    assert found.error < 0.05
    assert found.high(0.0) == found.rate < found.high(1.0)


def test_a_rising_rate_is_forecast_higher_than_it_is() -> None:
    forecast = ArrivalForecast()
    for step in range(120):
        forecast.observe(100 + 10 * step, EVERY_S, step * EVERY_S)
    found = forecast.forecast(120 * EVERY_S, HORIZON_S)
    assert forecast.rate < found.rate < 1.5 * forecast.rate


def test_a_rate_that_jumps_is_told_with_more_error() -> None:
    def error(second: int) -> float:
        forecast = ArrivalForecast()
        for step in range(300):
            forecast.observe(second if step // 15 % 2 else 100, EVERY_S, step * EVERY_S)
            found = forecast.forecast(step * EVERY_S, HORIZON_S)
        return found.error

    assert error(1000) > 2 * error(100)


def test_on_the_second_day_the_morning_is_expected() -> None:
    forecast = ArrivalForecast()
    at_s = 0.0
    while at_s < DAY_S + 8 * 3600 - 60:
        at_s += 60.0
        rate = 100.0 if at_s % DAY_S >= 8 * 3600 else 10.0
        forecast.observe(int(rate * 60), 60.0, at_s)
    assert forecast.rate == pytest.approx(10.0, rel=0.2)
    assert forecast.forecast(at_s, 900.0).rate > 50.0


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=100))
def test_forecasts_are_finite_and_never_negative(counts: list[int]) -> None:
    forecast = ArrivalForecast()
    for step, count in enumerate(counts):
        forecast.observe(count, EVERY_S, step * EVERY_S)
        found = forecast.forecast(step * EVERY_S, HORIZON_S)
        assert found.rate >= 0
        assert math.isfinite(found.high(3.0))
        assert 0 < found.error <= 1
