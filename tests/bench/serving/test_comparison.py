"""Ratios are found with their intervals; equal systems are not told apart.

Invariants: a side against itself is exactly 1; scaling one side's times scales the ratios; A/A is covered.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.serving.comparison import Ratio, compare
from bench.serving.metrics import Targets
from bench.serving.timing import Timing
from tests.support.bench_answers import poisson

TARGETS = {"": Targets(200, 15)}


def named(ratios: tuple[Ratio, ...]) -> dict[str, Ratio]:
    return {ratio.name: ratio for ratio in ratios}


def test_a_side_against_itself() -> None:
    timings = poisson(120, 1)
    for ratio in compare(timings, timings, TARGETS):
        assert (ratio.ratio.low, ratio.ratio.mid, ratio.ratio.high) == (1.0, 1.0, 1.0)
        assert ratio.verdict == "no difference seen"


@settings(max_examples=10, deadline=None)
@given(st.floats(0.5, 2.0), st.integers(0, 100))
def test_scaled_times_are_scaled_ratios(scale: float, seed: int) -> None:
    found = named(compare(poisson(60, seed), poisson(60, seed, slower=scale), TARGETS))
    for name in ("TTFT median", "TTFT P99", "TPOT P90", "ITL median", "E2EL median"):
        assert found[name].ratio.mid == pytest.approx(scale, rel=1e-6), name
        assert found[name].ratio.low == pytest.approx(scale, rel=1e-6), name


def test_a_slower_side_is_worse_and_a_faster_one_better() -> None:
    usual, slow = poisson(300, 1), poisson(300, 2, slower=1.6)
    assert named(compare(usual, slow, TARGETS))["TTFT median"].verdict == "worse"
    assert named(compare(slow, usual, TARGETS))["TTFT median"].verdict == "better"
    assert named(compare(usual, slow, TARGETS))["attainment"].verdict == "worse"
    assert named(compare(slow, usual, TARGETS))["attainment"].verdict == "better"


def test_equal_systems_are_seldom_told_apart() -> None:
    runs = 40
    told_apart = sum(
        named(compare(poisson(150, 2 * i), poisson(150, 2 * i + 1), {}))["TTFT median"].verdict != "no difference seen"
        for i in range(runs)
    )
    assert told_apart <= 12  # 4 are expected of 90 % intervals; more than 12 come once in 10,000 times


def test_failures_have_no_times_and_count_against_their_side() -> None:
    usual = poisson(100, 1)
    broken = [Timing(t.sent_s, due_s=t.due_s, error="x") if i % 2 else t for i, t in enumerate(usual)]
    found = named(compare(usual, broken, TARGETS))
    assert (found["success"].second, found["success"].verdict) == (0.5, "worse")
    nothing = named(compare(usual, [Timing(0.0, error="x")] * 100, TARGETS))
    assert math.isnan(nothing["TTFT median"].ratio.mid)
    assert nothing["TTFT median"].verdict == "no difference seen"


def test_unequal_traces_are_refused() -> None:
    with pytest.raises(ValueError, match="same requests"):
        compare(poisson(3, 1), poisson(4, 1), {})
