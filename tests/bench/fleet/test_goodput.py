"""The criterion on a system of known behaviour, and the intervals of its figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.fleet.goodput import RAMP_SHARE, Judged, best_of, interval, measure, ratio, shifted
from core.latency.step import StepCost, Table
from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import End, Outcome, Target
from sim.workload import Workload

REQUESTS = 1_000
TARGETS = (Target("all", 1.0, 0.1),)
COST = StepCost(Table.line(0.0, 1e-4), Table.constant(0.0), Table.constant(0.01), Table.constant(0.0), 0.0)
GOODPUTS = st.lists(st.floats(0.01, 1e4), min_size=2, max_size=8)


def cluster(capacity: int) -> ClusterSpec:
    """Make a cluster that `straight` takes to carry so many requests/s."""
    return ClusterSpec(Mode.ONE_POOL_CHUNKED, PoolSpec(capacity, COST, 1_000))


def straight(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0) -> Outcome:
    """Keep all requests up to the capacity, a tenth fewer at twice that, and none of those that come at the start."""
    size, most = len(workload), cluster.decode.replicas
    share = 1.0 - 0.1 * max(0.0, workload.rate / most - 1.0)
    ramp = int(RAMP_SHARE * size)
    kept = np.zeros(size, bool)
    kept[ramp : ramp + round(share * (size - ramp))] = True
    late = np.where(kept, 0.5, 2.0)
    none = np.zeros(size, np.int32)
    end = np.full(size, End.DONE, np.int8)
    return Outcome(
        workload.arrived_s, late, late * 0, late, late * 0, end, none, none, workload.classes(), 0, 0, 0, 0, 1.0
    )


def workload(name: str = "even") -> Workload:
    ones = np.ones(REQUESTS, np.int64)
    return Workload(name, np.arange(REQUESTS, dtype=float), ones, ones)


@pytest.mark.parametrize("hint", [0.2, 10.0, 300.0])
def test_goodput_is_where_attainment_falls_below_the_promise_and_the_ramp_does_not_count(hint: float) -> None:
    # 90 % are kept at twice the capacity.
    assert Judged(cluster(5), TARGETS, straight).goodput(workload(), hint) == pytest.approx(10.0, rel=0.02)


def test_nothing_above_a_rival_is_found_in_one_try() -> None:
    seen: dict[float, float] = {}
    assert Judged(cluster(5), TARGETS, straight).goodput(workload(), 8.0, above=12.0, seen=seen) == 0.0
    assert len(seen) == 1


def test_the_best_cluster_is_found_whatever_the_order() -> None:
    clusters = [cluster(size) for size in (3, 7, 5)]
    for given_order in (clusters, clusters[::-1]):
        best, rate = best_of(given_order, lambda c: Judged(c, TARGETS, straight), workload(), 4.0)
        assert best.decode.replicas == 7
        assert rate == pytest.approx(14.0, rel=0.02)


def test_the_curve_goes_by_rate_and_crosses_the_promise_at_the_goodput() -> None:
    found = measure(Judged(cluster(5), TARGETS, straight), [workload(), workload()], 9.0)
    rates = [rate for rate, _ in found.curve]
    assert rates == sorted(rates)
    assert found.goodput[0] == pytest.approx(found.goodput[1], rel=0.01)
    assert all((share >= 0.9) == (rate <= found.goodput[0]) for rate, share in found.curve if abs(share - 0.9) > 0.01)


def test_a_draw_that_attains_less_at_the_goodput_of_the_first_has_a_lower_one() -> None:
    # From 1.0 to 0.8 over a factor of e: a tenth less attained is half a logarithm, of which a quarter is the most.
    curve = ((1.0, 1.0), (math.e, 0.8))
    assert shifted(curve, 1.5, 0.9, 0.9) == 1.5
    assert shifted(curve, 1.5, 0.9, 0.88) == pytest.approx(1.5 * math.exp(-0.1))
    assert shifted(curve, 1.5, 0.9, 0.92) == pytest.approx(1.5 * math.exp(0.1))
    assert shifted(curve, 1.5, 0.9, 0.5) == pytest.approx(1.5 * math.exp(-0.25))
    assert shifted(curve[:1], 1.5, 0.9, 0.5) == 1.5


@given(GOODPUTS)
def test_an_interval_holds_the_figure_and_scales_with_it(values: list[float]) -> None:
    found, twice = interval(values), interval([2 * value for value in values])
    assert 0 < found.low <= found.mid == values[0] <= found.high
    assert (twice.low, twice.high) == pytest.approx((2 * found.low, 2 * found.high))


def test_an_interval_of_a_known_spread_is_students() -> None:
    # Logarithms 0 and 2: a standard deviation of sqrt(2), and t = 6.314 at one degree of freedom.
    assert interval([1.0, math.e**2]).high == pytest.approx(math.exp(6.314 * math.sqrt(2)))


def test_a_draw_in_which_nothing_is_kept_makes_the_lower_end_zero() -> None:
    assert interval([2.0, 0.0, 2.1]).low == 0.0
    assert interval([0.0, 1.0]).mid == 0.0


@given(GOODPUTS, st.floats(0.1, 10.0))
def test_a_ratio_of_systems_that_swing_alike_has_no_width(values: list[float], factor: float) -> None:
    found = ratio([factor * value for value in values], values)
    assert (found.low, found.mid, found.high) == pytest.approx((factor, factor, factor))


def test_more_than_nothing_has_no_ratio() -> None:
    assert ratio([1.0, 1.0], [0.0, 1.0]).low == math.inf
    assert ratio([0.0, 0.0], [0.0, 0.0]).mid == 1.0
