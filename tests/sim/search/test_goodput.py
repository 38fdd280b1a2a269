"""The criterion and the bisection, over a stand-in whose highest rate is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Outcome, Target
from sim.search.goodput import Judge, Scenario, rate_of, resampled, step_below, twice
from sim.search.placements import Placement
from sim.workload import Workload
from tests.sim.search.queue_model import PROMISE, queue_model, requests, shape

ONE = Placement(ClusterSpec(Mode.ONE_POOL, PoolSpec(1, shape().cost, 60_000)), (0,), 1.0)


class Limited:
    """Keeps the promise for everybody up to a rate, and for nobody beyond; counts the runs."""

    def __init__(self, limit: float, *, second_pass_limit: float = float("inf"), size: int = 0) -> None:
        self.limit, self.second_pass_limit, self.size = limit, second_pass_limit, size
        self.runs = 0

    def __call__(
        self, cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0
    ) -> Outcome:
        self.runs += 1
        limit = self.second_pass_limit if len(workload) > self.size > 0 else self.limit
        late = workload.rate > limit * (1 + 1e-9)
        easy = tuple(Target(t.name, 1e9, 1e9, t.attainment) for t in targets)
        outcome = queue_model(cluster, workload, easy)
        outcome.ttft_s[:] = 1e9 if late else 0.0
        outcome.tpot_s[:] = 0.0
        return outcome


def judge_of(run: Limited, *, seeds: int = 1, size: int = 60) -> Judge:
    return Judge(Scenario(resampled(requests(size), range(seeds)), PROMISE), run)


@given(st.floats(1e-3, 1e5))
def test_the_grid_rounds_down_by_less_than_its_resolution(rate: float) -> None:
    assert rate_of(step_below(rate)) <= rate * (1 + 1e-9)
    assert rate_of(step_below(rate) + 1) > rate * (1 - 1e-9)


@given(st.floats(0.5, 200.0), st.floats(0.05, 20.0))
def test_bisection_finds_the_highest_kept_rate_from_any_hint(limit: float, wrong_by: float) -> None:
    step = judge_of(Limited(limit)).highest_step(ONE, hint=limit * wrong_by)
    assert step is not None
    assert rate_of(step) <= limit * (1 + 1e-6) < rate_of(step + 1) * (1 + 1e-6)


def test_one_try_refutes_a_placement_that_is_no_better_than_the_best() -> None:
    run = Limited(5.0)
    assert judge_of(run).highest_step(ONE, hint=9.0, above=step_below(5.0)) is None
    assert run.runs == 1


def test_no_rate_is_found_where_none_is_kept() -> None:
    assert judge_of(Limited(0.0)).highest_step(ONE, hint=3.0) is None


def test_a_queue_that_grows_lowers_the_goodput_to_what_a_second_pass_keeps() -> None:
    judge = judge_of(Limited(8.0, second_pass_limit=6.0, size=60))
    step = judge.highest_step(ONE, hint=8.0)
    assert step == step_below(8.0)
    confirmed = judge.confirmed_step(ONE, step, above=0)
    assert judge.highest_confirmed(ONE, step, ceiling=1e3, above=0) == confirmed
    assert confirmed is not None
    assert 0.94 * 6.0 <= rate_of(confirmed) <= 6.0
    assert judge.confirmed_step(ONE, step, above=step_below(6.0)) is None


def test_nothing_is_simulated_twice() -> None:
    run = Limited(5.0)
    judge = judge_of(run, seeds=3)
    assert judge.quick_margin(ONE, step_below(5.0)) == pytest.approx(0.1)
    assert run.runs == 1
    assert judge.margin(ONE, step_below(5.0), whole=True) == pytest.approx(0.1)
    assert run.runs == 3
    assert judge.quick_margin(ONE, step_below(5.0)) == judge.margin(ONE, step_below(5.0), whole=False)
    assert run.runs == 3


def test_all_seeds_decide_what_is_confirmed() -> None:
    judge, size = judge_of(Limited(100.0), seeds=3), 60
    for step, shares in ((7, (0.91, 0.88, 0.92)), (8, (0.95, 0.82, 0.92))):
        for seed, share in enumerate(shares):
            judge._attained[ONE, seed, size, step, False] = (share,)
    assert judge.margin(ONE, 7, whole=True) == pytest.approx(0.0033, abs=1e-4)
    assert judge.margin(ONE, 8, whole=True) < 0 < judge.quick_margin(ONE, 8)
    assert judge.confirmed_step(ONE, 8, above=0) == 7


def test_the_search_ends_at_the_ceiling() -> None:
    assert judge_of(Limited(1e9)).highest_step(ONE, hint=3.0, ceiling=40.0) == step_below(40.0)


def test_a_long_workload_is_raced_on_its_beginning_and_confirmed_as_a_whole() -> None:
    run = Limited(1e9)
    judge = judge_of(run, size=5000)
    judge.quick_margin(ONE, 7)
    assert judge.simulated_requests == 3000
    judge.margin(ONE, 7, whole=True)
    assert judge.simulated_requests == 8000


def test_units_carry_their_share_of_the_rate() -> None:
    pool = PoolSpec(4, shape().cost, 60_000)
    placement = Placement(ClusterSpec(Mode.DISAGGREGATED, pool, prefill=pool), (0, 0), 8.0, copies=4)
    assert (placement.unit.decode.replicas, placement.unit.gpus, placement.cluster.gpus) == (1, 2, 8)
    step = judge_of(Limited(5.0)).highest_step(placement, hint=5.0)
    assert step is not None
    assert rate_of(step) == pytest.approx(20.0, rel=0.006)


def test_a_second_pass_follows_at_the_same_rate_and_shares_no_prefix() -> None:
    one = Workload(
        "w",
        np.array([0.0, 1.0, 2.0]),
        np.array([600, 600, 600]),
        np.array([2, 2, 2]),
        prefix_start=np.array([0, 1, 2, 3]),
        prefix_ids=np.array([0, 0, 1]),
    )
    both = twice(one)
    assert both.arrived_s.tolist() == [0, 1, 2, 3, 4, 5]
    assert both.rate == one.rate
    assert both.prefix_start.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert both.prefix_ids.tolist() == [0, 0, 1, 2, 2, 3]


def test_a_slice_of_a_large_cluster_keeps_its_proportions_and_its_share_of_the_rate() -> None:
    seen: list[tuple[ClusterSpec, float]] = []

    class Watched(Limited):
        def __call__(
            self, cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0
        ) -> Outcome:
            seen.append((cluster, workload.rate))
            return super().__call__(cluster, workload, targets, seed=seed)

    pool = PoolSpec(768, shape().cost, 60_000)
    large = Placement(ClusterSpec(Mode.DISAGGREGATED, pool, prefill=replace(pool, replicas=256)), (0, 0), 1024.0)
    judge, step = judge_of(Watched(1e9)), step_below(800.0)
    judge.quick_margin(large, step)
    judge.margin(large, step, whole=True)
    (part, at), (whole, rate) = seen
    assert part.prefill is not None
    assert (part.prefill.replicas, part.decode.replicas, whole.num_workers) == (32, 96, 1024)
    assert at == pytest.approx(rate / 8)
