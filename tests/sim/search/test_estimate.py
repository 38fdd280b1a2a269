"""The estimates scale with the workers and find the balance of two pools."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.search.bounds import Bounds, Demand
from sim.search.estimate import Estimates
from tests.sim.search.queue_model import PROMISE, requests, shape

DEMAND = Demand.of(requests(300), PROMISE)
POOL = PoolSpec(1, shape().cost, 60_000)


@given(st.integers(1, 50), st.sampled_from((Mode.ONE_POOL, Mode.ONE_POOL_CHUNKED)))
def test_more_workers_of_one_pool_carry_as_many_times_more(count: int, mode: Mode) -> None:
    estimates = Estimates(DEMAND)
    one = estimates.rate(ClusterSpec(mode, POOL))
    many = estimates.rate(ClusterSpec(mode, replace(POOL, replicas=count)))
    assert many == pytest.approx(count * one)


@given(st.integers(1, 20), st.integers(1, 20))
def test_two_pools_carry_what_the_slower_one_does(x: int, y: int) -> None:
    estimates = Estimates(DEMAND)
    cluster = ClusterSpec(Mode.DISAGGREGATED, replace(POOL, replicas=y), replace(POOL, replicas=x))
    rates = (x * estimates.prefill_rate(POOL), y * estimates.decode_rate(POOL))
    assert estimates.rate(cluster) == pytest.approx(min(rates))
    assert estimates.imbalance(cluster) == pytest.approx(max(rates) / min(rates))


def test_an_estimate_is_no_more_than_the_bound_allows() -> None:
    cluster = ClusterSpec(Mode.DISAGGREGATED, replace(POOL, replicas=2), POOL)
    assert Estimates(DEMAND).rate(cluster) <= Bounds(DEMAND).highest_rate(cluster)
