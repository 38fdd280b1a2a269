"""Curves never fall, and pass through what was measured."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.serving.curves import against_scale, cdf, of_class
from bench.serving.metrics import Targets, kept_series
from tests.support.bench_answers import poisson


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=50))
def test_distributions_never_fall(values: list[float]) -> None:
    points = cdf("x", np.array(values)).points
    assert all(a[0] <= b[0] and a[1] < b[1] for a, b in itertools.pairwise(points))
    assert cdf("x", np.zeros(0)).points == ()


def test_looser_targets_are_met_more_often_and_scale_one_is_the_attainment() -> None:
    timings, targets = poisson(200, 3), Targets(150, 12)
    points = dict(against_scale("x", timings, targets).points)
    shares = [points[scale] for scale in sorted(points)]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    kept = kept_series(timings, targets)
    assert points[1.0] == 100 * sum(kept) / len(kept)


def test_requests_without_a_class_are_of_the_default_one() -> None:
    fast = Targets(100, 10)
    targets = {"fast": fast, "slow": Targets(1000, 100), "": fast}
    timings = [*poisson(3, 1, slo_class="slow"), *poisson(2, 1), *poisson(1, 1, slo_class="fast")]
    assert len(of_class(timings, "fast", targets)) == 3
    assert len(of_class(timings, "slow", targets)) == 3
