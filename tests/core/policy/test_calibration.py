"""Intervals hold what they say, or predictions lose and regain trust.

Invariants, for any outcomes: ends are finite; the report agrees with a recount of the window; equal observations give
equal answers; classes do not touch each other; nothing is trusted that was not seen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.policy.calibration import (
    MIN_ADMITTED,
    MIN_OUTCOMES,
    WINDOW,
    Calibration,
    Coverage,
    admits_by_measure,
    band,
)
from core.policy.interval import TARGET, end_s
from core.types import Forecast, Margins

ANY = st.floats(allow_nan=True, allow_infinity=True)
Z_90 = 1.645  # a normal outcome is within so many deviations of its mean in 90 of 100 cases


def forecast(
    ttft_s: float = 0.1,
    spread: float = 0.2,
    tpot_s: float = 0.01,
    *,
    margins: Margins | None = None,
    waits: bool = False,
) -> Forecast:
    told = margins or Margins(-1.0, 1.0, -1.0, 1.0, -1.0, 1.0)
    low, high = (told.waiting_low, told.waiting_high) if waits else (told.ttft_low, told.ttft_high)
    ends = (end_s(ttft_s, spread, low), end_s(ttft_s, spread, high))
    ends += (end_s(tpot_s, spread, told.tpot_low), end_s(tpot_s, spread, told.tpot_high))
    parts = (ttft_s / 2, ttft_s / 2) if waits else (0.0, ttft_s)
    return Forecast(*parts, 0.0, 0.0, 0.0, tpot_s, spread, spread, *ends)


class Source:
    """Outcomes that scatter about what was predicted, times `bias`, with `scale` times the spread claimed."""

    def __init__(self, seed: int, calibration: Calibration) -> None:
        self._random = random.Random(seed)
        self.calibration = calibration

    def run(
        self,
        count: int,
        *,
        bias: float = 1.0,
        scale: float = 1.0,
        waits: bool = False,
        each: Callable[[], None] | None = None,
    ) -> None:
        for _ in range(count):
            given = forecast(margins=self.calibration.margins("chat"), waits=waits)
            error = self._random.gauss(0, 0.2 / Z_90 * scale)
            ttft_s = 0.1 * bias * math.exp(error)
            self.calibration.observe("chat", given, ttft_s=ttft_s, tpot_s=0.01 * math.exp(error))
            if each is not None:
                each()

    @property
    def ttft(self) -> Coverage:
        return self.calibration.report()[0]


def source(seed: int = 1) -> Source:
    return Source(seed, Calibration(("chat", "batch")))


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_true_intervals_stay_about_as_they_are_and_become_trusted(seed: int) -> None:
    made = source(seed)
    made.run(MIN_OUTCOMES - 1)
    assert not made.ttft.trusted
    assert made.ttft.reason == f"{MIN_OUTCOMES - 1} of {MIN_OUTCOMES} outcomes were seen"
    made.run(WINDOW)
    assert made.ttft.trusted
    assert made.ttft.factor < 2.5  # a wait was never seen, and has twice the width claimed
    assert made.ttft.outcomes == WINDOW


@given(st.integers(0, 2**32), st.floats(0.5, 3.0), st.floats(0.6, 1.6))
@settings(max_examples=20, deadline=None)
def test_shifted_and_scattered_outcomes_are_held_and_trusted(seed: int, scale: float, bias: float) -> None:
    made = source(seed)
    made.run(2 * WINDOW, scale=scale, bias=bias)
    found = made.ttft
    assert found.coverage is not None
    assert 0.83 <= found.coverage <= 0.96
    assert found.trusted


def test_intervals_narrow_again_when_the_load_does() -> None:
    made = source()
    made.run(WINDOW, scale=4.0)
    wide = made.calibration.margins("chat")
    made.run(WINDOW)
    narrow = made.calibration.margins("chat")
    assert narrow.ttft_high - narrow.ttft_low < 0.7 * (wide.ttft_high - wide.ttft_low)


def test_those_that_wait_have_ends_of_their_own() -> None:
    made = source()
    made.run(WINDOW)
    before = made.calibration.margins("chat")
    made.run(WINDOW, scale=5.0, waits=True)
    after = made.calibration.margins("chat")
    assert (after.ttft_low, after.ttft_high) == (before.ttft_low, before.ttft_high)
    assert after.waiting_high > 2.0 * before.ttft_high


@pytest.mark.parametrize("bias", [0.2, 3.0, 30.0])
def test_gross_bias_costs_trust_and_evidence_gives_it_back(bias: float) -> None:
    made = source()
    made.run(WINDOW)
    made.run(WINDOW, bias=bias)
    found = made.ttft
    assert not found.trusted
    assert "times" in found.reason
    assert not made.calibration.trusted("chat")
    made.run(WINDOW - 1)
    assert not made.ttft.trusted  # not a whole window of evidence yet
    made.run(2 * WINDOW)
    assert made.ttft.trusted


def test_trust_is_lost_within_a_window_of_a_drift() -> None:
    made = source()
    made.run(WINDOW)
    seen: list[bool] = []
    made.run(WINDOW, bias=5.0, each=lambda: seen.append(made.calibration.trusted("chat")))
    assert False in seen
    assert seen.index(False) <= WINDOW // 2 + 1


def test_intervals_that_are_given_out_as_they_were_cost_trust() -> None:
    """Whoever drives the policy does not tell it the ends: what counts is what was given out."""
    calibration, draw = Calibration(("chat",)), random.Random(1).gauss
    for _ in range(WINDOW):
        calibration.observe("chat", forecast(), ttft_s=0.1 * math.exp(draw(0, 0.4)))
    (found, _) = calibration.report()
    assert not found.trusted
    assert found.reason.endswith("outcomes were within their interval")


def test_intervals_that_say_nothing_are_not_trusted() -> None:
    calibration, draw = Calibration(("chat",)), random.Random(1).gauss
    for _ in range(3 * WINDOW):
        given = forecast(margins=calibration.margins("chat"))
        calibration.observe("chat", given, ttft_s=0.1 * math.exp(draw(0, 1.5)))
    (found, _) = calibration.report()
    assert found.coverage == pytest.approx(TARGET, abs=0.06)
    assert not found.trusted


def test_a_kind_whose_intervals_fail_costs_trust_however_many_of_the_other_hold() -> None:
    calibration = Calibration(("chat",))
    for i in range(WINDOW):
        waits = i % 4 == 0
        calibration.observe("chat", forecast(waits=waits), ttft_s=0.13 if waits and i % 8 else 0.1)
    (found, _) = calibration.report()
    assert found.coverage is not None
    assert found.coverage > band(WINDOW)[0]
    assert "requests that wait" in found.reason


def test_nothing_is_known_of_a_class_without_requests() -> None:
    calibration = Calibration(("chat",))
    assert not calibration.trusted("chat")
    assert calibration.measured_attainment("chat") is None
    for _ in range(WINDOW):
        calibration.served("chat", False)
    assert calibration.measured_attainment("chat") is None  # nothing speaks against predictions


@given(st.lists(st.tuples(ANY, ANY, ANY, st.none() | ANY, st.none() | ANY), max_size=300))
@settings(max_examples=50, deadline=None)
@example([(5e-324, 0.0, 0.0, 0.0, None)])  # half its width is no number above nothing
def test_absurd_outcomes_leave_ends_finite(
    outcomes: list[tuple[float, float, float, float | None, float | None]],
) -> None:
    calibration = Calibration(("chat",))
    for predicted_s, spread, tpot_s, ttft_s, actual_tpot_s in outcomes:
        parts = Forecast(0.0, predicted_s, 0.0, 0.0, 0.0, tpot_s, spread, spread, 0.0, predicted_s, tpot_s, spread)
        calibration.observe("chat", parts, ttft_s=ttft_s, tpot_s=actual_tpot_s)
        assert all(map(math.isfinite, calibration.margins("chat")))
    for found in calibration.report():
        assert found.coverage is None or 0.0 <= found.coverage <= 1.0


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.001, 3.0)), min_size=1, max_size=2 * WINDOW + 50))
@settings(max_examples=50, deadline=None)
def test_report_agrees_with_a_recount(outcomes: list[tuple[float, float]]) -> None:
    first, second = Calibration(("chat",)), Calibration(("chat",))
    held = []
    for predicted_s, actual_s in outcomes:
        given = forecast(predicted_s, margins=first.margins("chat"))
        held.append(given.ttft_low_s <= actual_s <= given.ttft_high_s)
        for calibration in (first, second):
            calibration.observe("chat", given, ttft_s=actual_s)
    found = first.report()[0]
    assert found.outcomes == min(WINDOW, len(outcomes))
    assert found.coverage == sum(held[-WINDOW:]) / len(held[-WINDOW:])
    assert found.band == band(found.outcomes)
    assert first.report() == second.report()


def test_ttft_and_tpot_are_judged_apart() -> None:
    calibration = Calibration(("chat",))
    for _ in range(WINDOW):
        calibration.observe("chat", forecast(), ttft_s=0.1, tpot_s=0.05)
    ttft, tpot = calibration.report()
    assert (ttft.trusted, tpot.trusted) == (True, False)
    assert not calibration.trusted("chat")


def test_an_outcome_that_cannot_be_told_counts_for_nothing() -> None:
    calibration = Calibration(("chat",))
    calibration.observe("chat", forecast())
    assert [found.outcomes for found in calibration.report()] == [0, 0]


def test_the_band_is_the_binomial_error_of_runs_of_outcomes() -> None:
    error = 2.58 * 0.03 * math.sqrt(2.0)
    assert band(200) == pytest.approx((0.9 - error / math.sqrt(2.0), 0.9 + error / math.sqrt(2.0)))
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
