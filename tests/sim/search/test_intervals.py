"""Draws are shared and reproducible; intervals widen with what is not known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.plan import DeviceGroup
from sim.search.goodput import Scenario, resampled, step_below
from sim.search.intervals import Spread, Worlds, draws_of, in_world, interval, separate
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
    return worlds.spread(Found(PLACEMENT, step_below(6.0)), 6.0)


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
    cost = in_world(PLACEMENT, (group_with_error(0.1),), draw).cluster.decode.cost
    known = PLACEMENT.cluster.decode.cost
    assert np.isclose(cost.prefill_s(100), known.prefill_s(100) * np.exp(0.1 * draw.prefill_z[0]))
    assert np.isclose(cost.decode_s(4, 100), known.decode_s(4, 100) * np.exp(0.1 * draw.decode_z[0]))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0, 100))
def test_an_interval_holds_its_figure(values: list[float], mid: float) -> None:
    found = interval(np.array(values), mid)
    assert found.low <= found.mid == mid <= found.high


def test_shared_luck_does_not_blur_a_comparison() -> None:
    luck = np.linspace(1.0, 3.0, 20)
    shares = np.ones((20, 1))
    assert separate(Spread(luck * 1.02, shares), Spread(luck, shares))
    assert not separate(Spread(luck, shares), Spread(luck[::-1].copy(), shares))
    assert not separate(Spread(luck, shares), Spread(luck, shares))
