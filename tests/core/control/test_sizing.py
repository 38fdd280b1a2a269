"""Sizes by estimate.

Invariants: never outside the bounds; more load never needs fewer workers of either role; more workers never carry less;
a split uses exactly the workers there are, and none carries more.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.control.actions import PoolSizes, SizeLimits
from core.control.capacity import Capacities, ServiceModel, capacities
from core.control.demand import Demand
from core.control.sizing import Bounds, best_split, needed, refined_need, refined_split, simulated_of, total
from tests.support.control import demand_of, service

MOST = 12


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    lengths = draw(st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 800)), min_size=1, max_size=8))
    return demand_of(draw(st.floats(0.01, 200.0)), *lengths)


@st.composite
def bounds(draw: st.DrawFn) -> Bounds:
    least = PoolSizes(draw(st.integers(0, 3)), draw(st.integers(1, 3)))
    most = PoolSizes(draw(st.integers(least.prefill, MOST)), draw(st.integers(least.decode, MOST)))
    return Bounds(SizeLimits(least, most), total(least), draw(st.integers(total(least), MOST)))


@given(demands())
@settings(deadline=None)
def test_more_workers_never_carry_less(demand: Demand) -> None:
    capacity = capacities(service(), demand, MOST)
    assert capacity.prefill[0] == capacity.decode[0] == 0.0
    assert (np.diff(capacity.prefill) >= 0).all()
    assert (np.diff(capacity.decode) >= 0).all()


@given(demands(), bounds(), st.floats(1.0, 5.0))
@settings(deadline=None)
def test_more_load_never_needs_fewer_workers(demand: Demand, within: Bounds, times: float) -> None:
    capacity = capacities(service(), demand, MOST)
    need, more = needed(capacity, demand.rate, within), needed(capacity, times * demand.rate, within)
    if need is None:
        assert more is None
        return
    assert within.allow(need) or total(need) < within.least_total
    if more is not None:
        assert more.prefill >= need.prefill
        assert more.decode >= need.decode


@given(demands(), st.integers(2, MOST), st.integers(0, MOST))
@settings(deadline=None)
def test_the_best_split_uses_all_workers_and_none_carries_more(demand: Demand, workers: int, near: int) -> None:
    within = Bounds(SizeLimits(PoolSizes(1, 1), PoolSizes(MOST, MOST)), 0, MOST)
    capacity = capacities(service(), demand, MOST)
    split = best_split(capacity, workers, within, PoolSizes(near, workers - near))
    assert total(split) == workers
    assert within.limits.allow(split)
    others = [capacity.rate(prefill, workers - prefill) for prefill in range(1, workers)]
    assert capacity.rate(split.prefill, split.decode) >= max(others) - 1e-5


def test_prompts_too_long_for_any_worker_are_hopeless_and_do_not_grow_the_pool() -> None:
    short, long = demand_of(10.0, (100, 10)), demand_of(10.0, (100, 10), (10_000, 10))
    assert capacities(service(), short, 4).hopeless == 0.0
    assert capacities(service(), long, 4).hopeless == 0.5


class Threshold:
    """Keeps the promise from these sizes on, and counts how often it is asked."""

    def __init__(self, least: PoolSizes) -> None:
        self.least, self.asked = least, 0

    def attained(self, model: ServiceModel, demand: Demand, sizes: PoolSizes) -> tuple[float, ...]:
        self.asked += 1
        short = max(0, self.least.prefill - sizes.prefill) + max(0, self.least.decode - sizes.decode)
        return (1.0 / (1 + short),)


WIDE = Bounds(SizeLimits(PoolSizes(1, 1), PoolSizes(MOST, MOST)), 0, MOST)


def test_simulation_adds_what_the_estimate_lacks_and_takes_what_it_has_too_much() -> None:
    for start in (PoolSizes(2, 2), PoolSizes(4, 3), PoolSizes(3, 3)):
        check = Threshold(PoolSizes(3, 3))
        assert refined_need(start, WIDE, simulated_of(check, service(), demand_of(1.0, (9, 9)), 20)) == PoolSizes(3, 3)


def test_simulation_moves_workers_to_where_they_help() -> None:
    check = Threshold(PoolSizes(5, 3))
    found = refined_split(PoolSizes(3, 5), WIDE, simulated_of(check, service(), demand_of(1.0, (9, 9)), 20))
    assert found == PoolSizes(5, 3)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
def test_simulation_keeps_its_budget_and_the_bounds(prefill: int, decode: int, budget: int) -> None:
    check = Threshold(PoolSizes(4, 4))
    simulated = simulated_of(check, service(), demand_of(1.0, (9, 9)), budget)
    for refine in (refined_need, refined_split):
        assert WIDE.allow(refine(PoolSizes(prefill, decode), WIDE, simulated))
    assert check.asked == simulated.count <= budget


def test_a_table_of_rates_ends_with_its_last_entry() -> None:
    capacity = Capacities(np.array([0.0, 1.0]), np.array([0.0, 2.0]), 0.0)
    assert capacity.rate(5, 5) == 1.0
