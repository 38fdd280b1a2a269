"""What goodput the policy that predicts keeps under more load than can be carried, and what its named times are worth.

The cluster carries about 25 requests a second within the targets.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from core.policy.calibration import Calibration
from core.policy.registry import POLICIES, policy_named
from sim.cluster import Admission, ClusterSpec, Mode, PoolSpec, Routing
from sim.outcome import End, Outcome, Target
from sim.policy_gear import Refused, context_of, simulate_with_policy
from sim.workload import Workload
from tests.support.contexts import COST

TARGETS = (Target("interactive", 0.5, 0.05),)
POOL = PoolSpec(3, COST, kv_capacity_tokens=20_000, max_num_seqs=32)
CLUSTER = ClusterSpec(Mode.DISAGGREGATED, POOL, POOL, routing=Routing(admission=Admission.TTFT_AND_TPOT))
PEAK_RATES = (20.0, 25.0, 30.0)
WARM_UP = 100


def workload(count: int = 1500) -> Workload:
    random = np.random.default_rng(0)
    arrived = np.cumsum(random.exponential(1.0, count))
    return Workload("chat", arrived - arrived[0], random.integers(1, 1500, count), random.integers(1, 100, count))


@cache
def run(rate: float, name: str = "slo-aware", refused: Refused = Refused.GIVE_UP, *, follows: bool = False) -> Outcome:
    """With `follows` the router's intervals follow what comes of its predictions, as a live one's do."""
    known = replace(context_of(CLUSTER, TARGETS, may_hold=True), mean_output_tokens=50.0)
    policy = policy_named(name, known)
    calibration = Calibration(target.name for target in TARGETS) if follows else None
    return simulate_with_policy(
        CLUSTER, workload().at_rate(rate), TARGETS, policy, refused=refused, calibration=calibration
    )


def goodput(rate: float, name: str = "slo-aware", *, follows: bool = False) -> float:
    return rate * run(rate, name, follows=follows).attainment(TARGETS, skip=WARM_UP)[0]


@pytest.mark.parametrize("overload", [1.5, 3.0])
def test_goodput_stays_within_5_percent_of_its_peak_while_that_of_others_collapses(overload: float) -> None:
    peak = max(map(goodput, PEAK_RATES))
    assert goodput(overload * PEAK_RATES[-1]) >= 0.95 * peak
    assert goodput(overload * PEAK_RATES[-1], "least-loaded") < 0.1 * max(
        goodput(r, "least-loaded") for r in PEAK_RATES
    )


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"slo-aware"}))
def test_no_baseline_keeps_more_at_any_rate(name: str) -> None:
    for rate in (15.0, 20.0, 30.0, 45.0):
        assert goodput(rate) >= 0.995 * goodput(rate, name)


def test_intervals_that_follow_outcomes_cost_no_goodput() -> None:
    for rate in (*PEAK_RATES, 1.5 * PEAK_RATES[-1], 3.0 * PEAK_RATES[-1]):
        assert goodput(rate, follows=True) >= 0.95 * goodput(rate)


@pytest.mark.parametrize("overload", [1.2, 1.5, 3.0])
@pytest.mark.parametrize("follows", [False, True])
def test_of_those_that_come_back_when_they_were_told_90_percent_are_admitted_and_kept(
    overload: float, *, follows: bool
) -> None:
    rate = overload * PEAK_RATES[-1]
    outcome = run(rate, refused=Refused.COME_BACK_RESERVED, follows=follows)
    offered_s = workload().at_rate(rate).arrived_s
    came_back = (outcome.arrived_s > offered_s) & (outcome.arrived_s <= offered_s[-1])  # while the load lasts
    assert came_back.sum() > 100
    assert (outcome.end[came_back] == End.DONE).mean() >= 0.9
    assert outcome.met(TARGETS)[came_back].mean() >= 0.9
    others = ~(outcome.arrived_s > offered_s)
    assert outcome.met(TARGETS)[others & (outcome.end == End.DONE)].mean() >= 0.9  # nor is it at the others' cost
