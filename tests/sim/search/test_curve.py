"""The curve holds the goodput and the rate asked for, and goodput counts requests in time."""

from __future__ import annotations

import pytest

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.search.curve import curve_of
from sim.search.goodput import Judge, Scenario, step_below
from sim.search.placements import Placement
from sim.search.race import Found
from tests.sim.search.queue_model import PROMISE, queue_model, requests, shape


def test_points_rise_in_rate_and_include_what_was_asked_for() -> None:
    found = Found(
        Placement(ClusterSpec(Mode.ONE_POOL, PoolSpec(2, shape().cost, 60_000)), (0,), 2.0),
        step_below(5.0),
        step_below(5.0),
    )
    points = curve_of(Judge(Scenario((requests(100),), PROMISE), queue_model), found, 4.321)
    rates = [point.rate for point in points]
    assert rates == sorted(rates)
    assert found.rate in rates
    assert 4.321 in rates
    for point in points:
        assert point.goodput == pytest.approx(point.rate * point.attainment[0])
    assert points[0].attainment[0] >= points[-1].attainment[0]
