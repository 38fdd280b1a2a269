"""Draws are shared and reproducible; intervals widen with what is not known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Target
from sim.plan import DeviceGroup, Interval, is_clear
from sim.search.goodput import Scenario, rate_of, resampled, step_below
from sim.search.intervals import (
    DRAWS,
    FEWER_DRAWS,
    Spread,
    Worlds,
    draws_of,
    goodput_interval,
    in_world,
    interval,
    ratio,
)
from sim.search.placements import Placement
from sim.search.race import Found
from tests.sim.search.queue_model import PROMISE, group, queue_model, requests, shape

PLACEMENT = Placement(ClusterSpec(Mode.ONE_POOL, PoolSpec(2, shape().cost, 60_000)), (0,), 2.0)


def group_with_error(error: float) -> DeviceGroup:
    one = replace(shape(), prefill_error=error, decode_error=error)
    return group(4, shapes=(one,))


def spread_with_error(error: float) -> Spread:
    scenario = Scenario(resampled(requests(200), (0, 1)), PROMISE)
    draws = draws_of(scenario, groups=1, count=10)
    worlds = Worlds(draws, (group_with_error(error),), scenario, queue_model)
    step = step_below(6.0)
    return worlds.spread(Found(PLACEMENT, step, step), 6.0, ceiling=1e3)


def test_more_error_of_the_fit_gives_a_wider_interval() -> None:
    exact, rough = spread_with_error(0.0).goodput, spread_with_error(0.3).goodput
    assert np.ptp(exact) > 0  # the trace is resampled all the same
    assert np.ptp(rough) > 1.5 * np.ptp(exact)


def test_equal_arguments_draw_equal_worlds() -> None:
    scenario = Scenario(resampled(requests(50), (0, 1)), PROMISE)
    for a, b in zip(draws_of(scenario, groups=2), draws_of(scenario, groups=2), strict=True):
        assert (a.prefill_z, a.decode_z) == (b.prefill_z, b.decode_z)
        assert np.array_equal(a.workload.arrived_s, b.workload.arrived_s)


def test_a_world_scales_prompts_and_decode_steps_apart() -> None:
    scenario = Scenario(resampled(requests(50), (0,)), PROMISE)
    (draw,) = draws_of(scenario, groups=1, count=1)
    placement, speed = in_world(PLACEMENT, (group_with_error(0.1),), draw)
    cost = placement.cluster.decode.cost
    assert np.isclose(speed, np.exp(-0.1 * min(draw.prefill_z[0], draw.decode_z[0])))
    known = PLACEMENT.cluster.decode.cost
    assert np.isclose(cost.prefill_s(100), known.prefill_s(100) * np.exp(0.1 * draw.prefill_z[0]))
    assert np.isclose(cost.decode_s(4, 100), known.decode_s(4, 100) * np.exp(0.1 * draw.decode_z[0]))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0, 100))
def test_an_interval_holds_its_figure(values: list[float], mid: float) -> None:
    found = interval(np.array(values), mid)
    assert found.low <= found.mid == mid <= found.high


def spread(goodput: np.ndarray, undisturbed: float = 1.0) -> Spread:
    return Spread(goodput, undisturbed, np.ones((len(goodput), 1)))


def test_shared_luck_does_not_blur_a_comparison() -> None:
    luck = np.linspace(1.0, 3.0, 20)
    ahead = ratio(spread(luck * 1.06, 1.06), spread(luck), (1.06, 1.0))
    assert (ahead.low, ahead.mid, ahead.high) == pytest.approx((1.06, 1.06, 1.06))
    assert is_clear(ahead)
    behind = ratio(spread(luck), spread(luck * 1.06, 1.06), (1.0, 1.06))
    assert is_clear(behind)
    assert not is_clear(ratio(spread(luck), spread(luck[::-1].copy()), (1.0, 1.0)))
    assert not is_clear(ratio(spread(luck * 1.04, 1.04), spread(luck), (1.04, 1.0)))  # less is no reason to choose


def test_a_ratio_that_straddles_one_is_not_clear_however_far_its_middle_is() -> None:
    drawn = np.array([0.9] * 2 + [2.0] * 18)
    found = ratio(spread(drawn, 2.0), spread(np.ones(20)), (2.0, 1.0))
    assert (found.low, found.mid, found.high) == (0.9, 2.0, 2.0)
    assert not is_clear(found)
    drawn[0] = 2.0  # 19 of 20 draws
    assert is_clear(ratio(spread(drawn, 2.0), spread(np.ones(20)), (2.0, 1.0)))


def test_a_closer_look_moves_the_ratio_and_its_draws_with_it() -> None:
    seen = ratio(spread(np.linspace(1.0, 1.6, 20), 1.3), spread(np.ones(20)), (1.3, 1.0))
    moved = ratio(spread(np.linspace(1.0, 1.6, 20), 1.3), spread(np.ones(20)), (0.65, 1.0))
    assert (moved.low, moved.mid, moved.high) == pytest.approx((seen.low / 2, 0.65, seen.high / 2))
    assert is_clear(seen)
    assert is_clear(moved)


def test_draws_in_which_one_keeps_nothing_widen_a_ratio_and_those_where_neither_does_tell_nothing() -> None:
    some = np.ones(20)
    none = np.where(np.arange(20) < 4, 0.0, 1.0)
    assert ratio(spread(some), spread(none), (1.0, 1.0)).high == math.inf
    assert ratio(spread(none), spread(some), (1.0, 1.0)).low == 0.0
    assert ratio(spread(none), spread(none), (1.0, 1.0)) == Interval(1.0, 1.0, 1.0)
    assert ratio(spread(some), spread(none), (1.0, 0.0)).mid == math.inf


def test_a_goodput_that_the_second_pass_lowered_lies_inside_its_interval() -> None:
    spread = Spread(np.linspace(9.0, 11.0, 20), 10.0, np.ones((20, 1)))
    found = goodput_interval(spread, 8.0)
    assert found.low == pytest.approx(8.0 * 0.91)
    assert found.high == pytest.approx(8.0 * 1.09)


def test_a_draw_that_queues_at_no_rate_ends_at_what_the_devices_can_do() -> None:
    scenario = Scenario(resampled(requests(200), (0, 1)), (Target("chat", 1e6, 1e6),))
    worlds = Worlds(draws_of(scenario, groups=1, count=4), (group_with_error(0.0),), scenario, queue_model)
    spread = worlds.spread(Found(PLACEMENT, step_below(6.0), step_below(6.0)), 6.0, ceiling=9.0)
    assert spread.goodput == pytest.approx(np.full(4, rate_of(step_below(9.0))), rel=0.05)


def test_a_rough_spread_takes_fewer_draws() -> None:
    scenario = Scenario(resampled(requests(60), (0,)), PROMISE)
    worlds = Worlds(draws_of(scenario, groups=1), (group_with_error(0.1),), scenario, queue_model)
    step = step_below(6.0)
    assert len(worlds.spread(Found(PLACEMENT, step, step), 6.0, ceiling=1e3, roughly=True).goodput) == FEWER_DRAWS
    assert len(worlds.draws) == DRAWS
