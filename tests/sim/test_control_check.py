"""The simulator's check of sizes: it agrees with what is known of a service, and takes a bounded time."""

from __future__ import annotations

import numpy as np

from core.control.actions import PoolSizes
from core.control.capacity import capacities
from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.control_check import SimulatedSizes
from tests.support.control import demand_of, service


def checked(rate: float, sizes: PoolSizes) -> float:
    worker = service().prefill
    pool = PoolSpec(1, worker.cost, worker.kv_capacity_tokens)
    spec = ClusterSpec(Mode.DISAGGREGATED, pool, pool)
    return SimulatedSizes(spec).attained(service(), demand_of(rate, (500, 100), (900, 50)), sizes)[0]


def test_what_the_estimate_calls_enough_keeps_the_promise_in_simulation_and_half_of_it_does_not() -> None:
    capacity = capacities(service(), demand_of(1.0, (500, 100), (900, 50)), 8)
    for sizes in (PoolSizes(2, 1), PoolSizes(4, 2), PoolSizes(8, 4)):
        rate = capacity.rate(sizes.prefill, sizes.decode)
        assert checked(0.9 * rate, sizes) >= 0.9
        assert checked(2.0 * rate, sizes) < 0.9


def test_equal_questions_have_equal_answers_and_more_workers_do_no_harm() -> None:
    shares = [checked(30.0, PoolSizes(prefill, 2)) for prefill in (1, 2, 3, 4)]
    assert shares == [checked(30.0, PoolSizes(prefill, 2)) for prefill in (1, 2, 3, 4)]
    assert (np.diff(shares) >= -0.02).all()


def test_of_many_workers_a_slice_is_simulated() -> None:
    few, many = checked(20.0, PoolSizes(16, 16)), checked(160.0, PoolSizes(128, 128))
    assert abs(few - many) < 0.02
