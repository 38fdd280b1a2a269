"""Intervals hold what they say, or are widened, or predictions lose and regain trust.

Invariants, for any outcomes: factors are finite and at least 1; the report agrees with a recount of the window; equal
observations give equal answers; classes do not touch each other.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.policy.calibration import (
    MAX_FACTOR,
    MIN_ADMITTED,
    MIN_OUTCOMES,
    TARGET,
    WINDOW,
    Calibration,
    Coverage,
    Widening,
    admits_by_measure,
    band,
)
from core.types import Forecast

ANY = st.floats(allow_nan=True, allow_infinity=True)
Z_90 = 1.645  # a normal outcome is within so many deviations of its mean in 90 of 100 cases


def forecast(ttft_s: float = 0.1, spread: float = 0.2, tpot_s: float = 0.01) -> Forecast:
    return Forecast(ttft_s / 2, ttft_s / 2, 0.0, 0.0, 0.0, tpot_s, ttft_spread=spread, tpot_spread=spread)


class Source:
    """Outcomes that scatter about what was predicted, times `bias`, with `scale` times the spread claimed."""

    def __init__(self, seed: int, calibration: Calibration) -> None:
        self._random = random.Random(seed)
        self.calibration = calibration

    def run(self, count: int, *, bias: float = 1.0, scale: float = 1.0, each: Callable[[], None] | None = None) -> None:
        for _ in range(count):
            widening = self.calibration.spread_factor("chat")
            given = forecast(spread=0.2 * widening.ttft)
            error = self._random.gauss(0, 0.2 / Z_90 * scale)
            self.calibration.observe("chat", given, max(0.0, 0.1 * bias * (1 + error)), None, widening=widening)
            if each is not None:
                each()

    @property
    def ttft(self) -> Coverage:
        return self.calibration.report()[0]


def source(seed: int = 1) -> Source:
    return Source(seed, Calibration(("chat", "batch")))


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_true_intervals_stay_as_they_are_and_trusted(seed: int) -> None:
    made = source(seed)
    made.run(WINDOW)
    found = made.ttft
    assert found.trusted
    assert found.factor < 1.5
    assert found.outcomes == WINDOW


@given(st.integers(0, 2**32), st.floats(1.6, 3.0))
@settings(max_examples=30, deadline=None)
def test_narrow_intervals_are_widened_until_they_hold(seed: int, scale: float) -> None:
    made = source(seed)
    made.run(3 * WINDOW, scale=scale)
    found = made.ttft
    assert 0.7 * scale < found.factor < 1.5 * scale
    assert found.coverage is not None
    assert found.coverage > TARGET - 0.12


def test_intervals_narrow_again_when_the_load_does() -> None:
    made = source()
    made.run(3 * WINDOW, scale=2.5)
    wide = made.ttft.factor
    made.run(3 * WINDOW, scale=1.0)
    assert made.ttft.factor < 0.7 * wide
    assert made.ttft.trusted


@pytest.mark.parametrize("bias", [0.2, 3.0, 30.0])
def test_gross_bias_costs_trust_and_evidence_gives_it_back(bias: float) -> None:
    made = source()
    made.run(WINDOW)
    made.run(WINDOW, bias=bias)
    found = made.ttft
    assert not found.trusted
    assert "times" in found.reason
    assert not made.calibration.trusted("chat")
    assert made.calibration.trusted("batch")
    made.run(WINDOW - 1)
    assert not made.ttft.trusted  # not a whole window of evidence yet
    made.run(4 * WINDOW)
    assert made.ttft.trusted
    assert made.ttft.reason.startswith(("trusted again", "1"))
    assert made.ttft.factor < math.sqrt(MAX_FACTOR)


def test_trust_is_lost_within_a_window_of_a_drift() -> None:
    made = source()
    made.run(WINDOW)
    seen: list[bool] = []
    made.run(WINDOW, bias=5.0, each=lambda: seen.append(made.calibration.trusted("chat")))
    assert False in seen
    assert seen.index(False) <= WINDOW // 2 + MIN_OUTCOMES


def test_widening_that_does_not_help_costs_trust() -> None:
    """The load changes for the worse faster than intervals follow."""
    made = source()
    made.run(WINDOW)
    for scale in (2.0, 4.0, 8.0, 16.0, 32.0):
        made.run(WINDOW // 2, scale=scale)
    assert not made.ttft.trusted


def test_few_outcomes_say_nothing() -> None:
    made = source()
    made.run(MIN_OUTCOMES - 1, bias=10.0)
    assert (made.ttft.trusted, made.ttft.factor, made.ttft.coverage) == (True, 1.0, 0.0)
    made.run(1, bias=10.0)
    assert not made.ttft.trusted


@given(st.lists(st.tuples(ANY, ANY, ANY, st.none() | ANY, st.none() | ANY), max_size=300))
@settings(max_examples=50, deadline=None)
@example([(5e-324, 0.0, 0.0, 0.0, None)])  # half its width is no number above nothing
def test_absurd_outcomes_leave_factors_finite(
    outcomes: list[tuple[float, float, float, float | None, float | None]],
) -> None:
    calibration = Calibration(("chat",))
    for predicted_s, spread, tpot_s, ttft_s, actual_tpot_s in outcomes:
        calibration.observe("chat", forecast(predicted_s, spread, tpot_s), ttft_s, actual_tpot_s)
        factors = calibration.spread_factor("chat")
        assert 1.0 <= factors.ttft < math.inf
        assert 1.0 <= factors.tpot < math.inf
    for found in calibration.report():
        assert found.coverage is None or 0.0 <= found.coverage <= 1.0


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.0, 3.0)), min_size=1, max_size=2 * WINDOW + 50))
@settings(max_examples=50, deadline=None)
def test_report_agrees_with_a_recount(outcomes: list[tuple[float, float]]) -> None:
    first, second = Calibration(("chat",)), Calibration(("chat",))
    held = []
    for predicted_s, actual_s in outcomes:
        widening = first.spread_factor("chat")
        given = forecast(predicted_s, 0.2 * widening.ttft)
        held.append(abs(actual_s - predicted_s) <= 0.2 * widening.ttft * predicted_s * (1 + 1e-12))
        for calibration in (first, second):
            calibration.observe("chat", given, actual_s, None, widening=widening)
    found = first.report()[0]
    assert found.outcomes == min(WINDOW, len(outcomes))
    assert found.coverage == pytest.approx(sum(held[-WINDOW:]) / len(held[-WINDOW:]), abs=1.5 / found.outcomes)
    assert found.band == band(found.outcomes)
    assert first.report() == second.report()


def test_ttft_and_tpot_are_judged_apart() -> None:
    calibration = Calibration(("chat",))
    for _ in range(WINDOW):
        calibration.observe("chat", forecast(), 0.1, 0.05)
    ttft, tpot = calibration.report()
    assert (ttft.trusted, tpot.trusted) == (True, False)
    assert not calibration.trusted("chat")
    assert calibration.spread_factor("chat").ttft == Widening().ttft


def test_an_outcome_that_cannot_be_told_counts_for_nothing() -> None:
    calibration = Calibration(("chat",))
    calibration.observe("chat", forecast(), None, None)
    assert [found.outcomes for found in calibration.report()] == [0, 0]


def test_the_band_is_the_binomial_error() -> None:
    low, high = band(100)
    assert (low, high) == pytest.approx((0.9 - 2.58 * 0.03, 0.9 + 2.58 * 0.03))
    assert band(0) == (0.0, 1.0)


@given(st.none() | st.floats(0, 1), st.floats(0.5, 1), st.integers(0, 2**40))
def test_measured_admission_lets_in_the_share_that_is_kept(attainment: float | None, target: float, first: int) -> None:
    admitted = sum(admits_by_measure(attainment, target, first + i) for i in range(1000)) / 1000
    if attainment is None or attainment >= target:
        assert admitted == 1.0
    else:
        assert admitted == pytest.approx(max(MIN_ADMITTED, attainment / target), abs=0.01)


def test_attainment_counts_only_while_predictions_are_not_trusted() -> None:
    made = source()
    for number in range(WINDOW):
        made.calibration.served("chat", number % 4 != 0)
    assert made.calibration.measured_attainment("chat") is None
    made.run(WINDOW, bias=5.0)
    assert made.calibration.measured_attainment("chat") == 0.75
    assert made.calibration.measured_attainment("batch") is None
