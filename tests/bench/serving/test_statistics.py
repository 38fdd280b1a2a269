"""Intervals cover what they say, for independent requests and for ones that resemble their neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.serving import statistics
from sim.plan import Interval

RUNS = 400


def alike(rng: np.random.Generator, count: int, memory: float) -> np.ndarray:
    """Draw a series with a standard normal distribution and correlated neighbours (AR(1))."""
    noise = rng.standard_normal(count) * math.sqrt(1 - memory * memory)
    values = np.empty(count)
    last = rng.standard_normal()
    for i, each in enumerate(noise):
        last = values[i] = memory * last + each
    return values


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_wilson_holds_its_share_and_stays_within_bounds(share: float, count: int) -> None:
    found = statistics.wilson(share, count)
    assert 0.0 <= found.low <= share <= found.high <= 1.0
    assert found.low < found.high


def test_wilson_against_published_figures() -> None:
    # Brown, Cai, DasGupta 2001: with z = 1.645 (90 %), 5 of 50: by hand (p + z2/2n -+ ...) / (1 + z2/n).
    found = statistics.wilson(0.1, 50)
    assert (found.low, found.high) == (pytest.approx(0.0500, abs=2e-3), pytest.approx(0.1902, abs=3e-3))


@pytest.mark.parametrize(("memory", "count"), [(0.0, 60), (0.0, 600), (0.8, 1500)])
def test_shares_means_and_quantiles_are_covered(memory: float, count: int) -> None:
    rng = np.random.default_rng(11)
    hits = dict.fromkeys(("share", "mean", "median", "p90"), 0)
    for _ in range(RUNS):
        values = alike(rng, count, memory)
        for name, found, truth in (
            ("share", statistics.share(values <= 1.0).interval, 0.8413447),
            ("mean", statistics.mean(values).interval, 0.0),
            ("median", statistics.quantile(values, 0.5).interval, 0.0),
            ("p90", statistics.quantile(values, 0.9).interval, 1.2815516),
        ):
            hits[name] += found.low <= truth <= found.high
    low = 0.90 - 4 * math.sqrt(0.9 * 0.1 / RUNS)  # four standard errors of the count of hits
    assert all(low <= found / RUNS <= 0.99 for found in hits.values()), hits


def test_alike_neighbours_are_worth_fewer_requests() -> None:
    rng = np.random.default_rng(5)
    assert statistics.effective_count(rng.standard_normal(2000)) > 1200
    assert statistics.effective_count(alike(rng, 2000, 0.95)) < 250
    assert statistics.effective_count([]) == 0
    assert statistics.effective_count([1.0] * 500) == 500


def test_what_no_value_supports_has_no_end() -> None:
    found = statistics.quantile(np.arange(100.0), 0.999)
    assert found.interval.high == math.inf
    assert statistics.quantile(np.arange(100.0), 0.5).interval.high < 100
    assert math.isnan(statistics.quantile([], 0.5).mid)
    assert statistics.share([]).interval.low == 0.0


def test_the_number_of_requests_for_a_width_gives_that_width() -> None:
    for share in (0.5, 0.9, 1.0):
        found: Interval = statistics.wilson(share, statistics.requests_for(share, 0.02))
        assert found.high - found.low == pytest.approx(0.04, rel=0.05)


def test_halves_differ_only_when_they_do() -> None:
    rng = np.random.default_rng(3)
    assert abs(statistics.halves_differ(rng.standard_normal(1000))) < 3
    assert statistics.halves_differ(np.arange(1000) / 500 + rng.standard_normal(1000)) > 3
    assert statistics.halves_differ([0.0] * 50 + [1.0] * 50) == math.inf
    assert statistics.halves_differ([1.0, 2.0]) == 0.0
