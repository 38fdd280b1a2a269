"""Two classes of unlike targets under more load than can be carried: none is crowded out, and tiers hold.

The cluster carries about 25 requests a second; half of what comes may wait, and be written slowly.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from core.policy.context import ClassTarget, Tier
from core.policy.registry import POLICIES, policy_named
from sim.cluster import Admission, Mode, Routing
from sim.outcome import End, Outcome, Target
from sim.policy_gear import context_of, simulate_with_policy
from sim.workload import Workload
from tests.sim.gear_setting import cluster

TARGETS = (Target("tight", 0.5, 0.05), Target("loose", 10.0, 0.2))
CLUSTER = cluster(3, 3, mode=Mode.DISAGGREGATED, routing=Routing(admission=Admission.TTFT_AND_TPOT))
CAPACITY, WARM_UP = 25.0, 100
ALIKE = (Tier.STANDARD, Tier.STANDARD)


def workload(count: int = 1000) -> Workload:
    random = np.random.default_rng(0)
    arrived = np.cumsum(random.exponential(1.0, count))
    prompts, outputs = random.integers(1, 1500, count), random.integers(1, 100, count)
    return Workload("two", arrived - arrived[0], prompts, outputs, slo_class=random.integers(0, 2, count))


@cache
def run(factor: float, tiers: tuple[Tier, Tier] = ALIKE, name: str = "slo-aware") -> Outcome:
    targets = {t.name: ClassTarget(t.ttft_s, t.tpot_s, tier) for t, tier in zip(TARGETS, tiers, strict=True)}
    known = replace(context_of(CLUSTER, TARGETS, may_hold=True), mean_output_tokens=50.0, targets=targets)
    offered = workload().at_rate(factor * CAPACITY)
    return simulate_with_policy(CLUSTER, offered, TARGETS, policy_named(name, known))


def kept(factor: float, tiers: tuple[Tier, Tier] = ALIKE, name: str = "slo-aware") -> tuple[float, ...]:
    return run(factor, tiers, name).attainment(TARGETS, skip=WARM_UP)


def goodput(factor: float, name: str = "slo-aware") -> float:
    return factor * float(run(factor, ALIKE, name).met(TARGETS)[WARM_UP:].mean())


@pytest.mark.parametrize(("overload", "least"), [(1.5, 0.65), (3.0, 0.35)])
def test_the_loose_class_does_not_crowd_out_the_tight_one(overload: float, least: float) -> None:
    tight, loose = kept(overload)
    assert tight >= least
    assert loose >= least


def test_goodput_of_both_together_does_not_fall() -> None:
    rising = [goodput(factor) for factor in (1.0, 1.5, 3.0)]
    assert rising[1] >= 0.95 * rising[0]
    assert rising[2] >= 0.95 * max(rising)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"slo-aware"}))
def test_no_baseline_keeps_more_under_overload(name: str) -> None:
    (tight, loose), (their_tight, their_loose) = kept(1.5), kept(1.5, name=name)
    assert tight >= their_tight
    assert loose >= 0.95 * their_loose  # which have the place of those that are refused
    assert goodput(1.5) >= 1.2 * goodput(1.5, name)
    assert goodput(1.0) >= 0.985 * goodput(1.0, name)


@pytest.mark.parametrize("tiers", [(Tier.PROTECTED, Tier.STANDARD), (Tier.STANDARD, Tier.BEST_EFFORT)])
def test_a_higher_tier_keeps_what_it_keeps_without_the_lower_one(tiers: tuple[Tier, Tier]) -> None:
    """Half of 1.5 times the capacity is less than all of it; half of three times is more."""
    assert kept(1.5, tiers)[0] >= 0.95
    assert kept(3.0, tiers)[0] >= 0.6
    assert kept(3.0, tiers)[1] >= 0.2  # and the lower tier takes what is left


@pytest.mark.parametrize("tiers", [ALIKE, (Tier.PROTECTED, Tier.STANDARD), (Tier.PROTECTED, Tier.PROTECTED)])
def test_what_is_admitted_under_overload_keeps_its_targets(tiers: tuple[Tier, Tier]) -> None:
    outcome = run(3.0, tiers)
    assert outcome.met(TARGETS)[outcome.end == End.DONE].mean() >= 0.97
