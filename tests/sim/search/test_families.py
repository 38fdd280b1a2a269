"""Budgets rise, and more devices never give less."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cluster import Mode
from sim.outcome import Target
from sim.plan import PlanQuestion
from sim.search.bounds import Bounds, Demand
from sim.search.estimate import Estimates
from sim.search.families import Bests, climb
from sim.search.goodput import RESOLUTION, Judge, Scenario, step_below
from sim.search.race import Found, Race
from tests.sim.search.queue_model import group, question, queue_model, shape


def ignore(best: Found | None) -> None:
    del best


def climbed(asked: PlanQuestion) -> list[Bests]:
    demand = Demand.of(asked.workload, asked.targets)
    judge = Judge(Scenario((asked.workload,), asked.targets), queue_model)
    return list(climb(Race(asked, judge, Bounds(demand), Estimates(demand), ignore)))


GRID = (1 + RESOLUTION) ** 2 * (1 + 1e-9)  # two steps of the rates: confirming strides down by one, then by two


def highest(asked: PlanQuestion) -> float:
    best = climbed(asked)[-1].best
    return best.rate if best else 0.0


@settings(max_examples=15)
@given(st.integers(1, 6), st.floats(0.15, 1.5), st.floats(0.015, 0.08), st.integers(0, 5))
def test_more_devices_never_lower_the_goodput(devices: int, ttft_s: float, tpot_s: float, seed: int) -> None:
    asked = question(targets=(Target("chat", ttft_s, tpot_s),), count=60)
    asked = replace(asked, workload=asked.workload.bootstrap(np.random.default_rng(seed), 10))
    fewer, more = (highest(replace(asked, groups=(group(count),))) for count in (devices, devices + 1))
    assert more >= fewer / GRID  # near the promise steps of the grid are kept and missed in turn: any is found


def test_every_budget_has_the_bests_of_its_own_devices() -> None:
    steps = climbed(question(group(4), count=100))
    assert [bests.price for bests in steps] == [1.0, 2.0, 3.0, 4.0]
    for bests in steps:
        for found in (bests.one_pool, bests.disaggregated):
            assert found is None or found.placement.price_per_hour <= bests.price
    assert steps[0].disaggregated is None  # one device cannot be two pools


def test_the_climb_ends_at_the_cheapest_budget_that_carries_the_rate() -> None:
    asked = question(group(12, shapes=(shape(),)), modes=(Mode.ONE_POOL_CHUNKED,), count=100)
    wanted = highest(replace(asked, groups=(group(10, shapes=(shape(),)),))) * 0.999
    steps = climbed(replace(asked, rate=wanted))
    assert steps[-1].price <= 10.0
    assert steps[-1].best is not None
    assert steps[-1].best.step >= step_below(wanted)
    short = climbed(replace(asked, groups=(group(int(steps[-1].price) - 1, shapes=(shape(),)),)))[-1].best
    assert short is None or short.step < step_below(wanted)


def test_many_splits_are_bracketed_and_then_climbed() -> None:
    asked = question(group(48, shapes=(shape(),)), modes=(Mode.DISAGGREGATED,), count=400)
    demand = Demand.of(asked.workload, asked.targets)
    race = Race(
        asked,
        Judge(Scenario((asked.workload,), asked.targets), queue_model),
        Bounds(demand),
        Estimates(demand),
        ignore,
    )
    best = list(climb(race))[-1].best
    assert best is not None
    assert len(race.simulated) < 150
    cluster = best.placement.cluster
    assert cluster.prefill is not None
    for x in range(8, 44, 4):
        pools = (replace(cluster.prefill, replicas=x), replace(cluster.decode, replicas=48 - x))
        other = replace(best.placement, cluster=replace(cluster, prefill=pools[0], decode=pools[1]))
        step = race.judge.highest_step(other, hint=best.rate, above=best.step + 4)
        assert step is None or race.judge.confirmed_step(other, step, above=best.step + 4) is None  # 2 %
