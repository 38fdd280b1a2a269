"""A simulated router's intervals, as it gave them out, hold what they say while the load changes; and it says so.

Intervals change who is admitted, so this is looked at in the closed loop of policy, engines and calibration.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest

from core.policy.calibration import Calibration
from core.policy.protocol import Policy
from core.policy.registry import policy_named
from core.types import ClusterView, Decision, Forecast, RequestShape, Route
from sim.cluster import Admission, ClusterSpec, Mode, PoolSpec, Routing
from sim.outcome import End, Outcome, Target
from sim.policy_gear import context_of, simulate_with_policy
from sim.workload import Workload
from tests.support.contexts import COST

TARGETS = (Target("interactive", 0.5, 0.05), Target("batch", 10.0, 0.2))
POOL = PoolSpec(1, COST, kv_capacity_tokens=20_000, max_num_seqs=32)
CLUSTER = ClusterSpec(Mode.DISAGGREGATED, POOL, POOL, routing=Routing(admission=Admission.TTFT_AND_TPOT))
WINDOW = 300
LEAST, MOST = 0.80, 0.97


@dataclass(frozen=True)
class Span:
    """Requests that are alike: 30 % of them of the patient class, unless said otherwise."""

    rate: float
    count: int
    longest: int = 600
    patient: float = 0.3


def workload(*spans: Span) -> Workload:
    random, at_s = np.random.default_rng(3), 0.0
    arrived, prompts, classes = [], [], []
    for span in spans:
        arrived.append(at_s + np.cumsum(random.exponential(1.0 / span.rate, span.count)))
        at_s = arrived[-1][-1]
        patient = random.random(span.count) < span.patient
        own = random.integers(20, span.longest, span.count)
        prompts.append(np.where(patient, random.integers(300, 1500, span.count), own))
        classes.append(patient.astype(np.int64))
    times = np.concatenate(arrived)
    outputs = random.integers(1, 100, len(times))
    return Workload("spans", times - times[0], np.concatenate(prompts), outputs, slo_class=np.concatenate(classes))


LOADS = {
    "steady": (Span(7.0, 1400),),
    "a load step": (Span(4.0, 500), Span(14.0, 1200)),
    "other lengths": (Span(6.0, 600), Span(4.0, 900, longest=1500, patient=0.2)),
    "three times too much": (Span(25.0, 3500),),
}


@dataclass
class Watched:
    """A policy of which every route is noted."""

    policy: Policy
    forecasts: dict[int, tuple[Forecast, float]] = field(default_factory=dict)  # with the time waited, in order

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        decision = self.policy.decide(request, cluster, now_s)
        if isinstance(decision, Route) and decision.forecast is not None:
            self.forecasts[int(request.request_id)] = decision.forecast, request.waited_s
        return decision


@cache
def run(load: str) -> tuple[Outcome, Watched, Calibration]:
    known = replace(context_of(CLUSTER, TARGETS, may_hold=True), mean_output_tokens=50.0)
    watched, calibration = Watched(policy_named("slo-aware", known)), Calibration(t.name for t in TARGETS)
    outcome = simulate_with_policy(CLUSTER, workload(*LOADS[load]), TARGETS, watched, calibration=calibration)
    return outcome, watched, calibration


def shares(held: list[bool]) -> list[float]:
    span = min(WINDOW, len(held))
    return [sum(held[i : i + span]) / span for i in range(0, len(held) - span + 1, 20)]


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("slo_class", [0, 1])
def test_every_few_hundred_outcomes_hold_their_share(load: str, slo_class: int) -> None:
    outcome, watched, _ = run(load)
    first, token = [], []
    for request, (forecast, waited_s) in watched.forecasts.items():
        if outcome.end[request] == End.DONE and outcome.slo_class[request] == slo_class:
            first.append(forecast.ttft_low_s <= outcome.ttft_s[request] - waited_s <= forecast.ttft_high_s)
            if outcome.tpot_s[request] > 0:
                token.append(forecast.tpot_low_s <= outcome.tpot_s[request] <= forecast.tpot_high_s)
    assert len(first) >= 200
    for held in (first, token):
        assert min(shares(held)) >= LEAST
        assert max(shares(held)) <= MOST


@pytest.mark.parametrize("load", LOADS)
def test_what_is_admitted_keeps_its_slo_and_nothing_goes_by_measure(load: str) -> None:
    outcome, _, calibration = run(load)
    done = outcome.end == End.DONE
    assert outcome.met(TARGETS)[done].mean() >= 0.97
    told = {(found.slo_class, found.quantity): found for found in calibration.report()}
    for target in TARGETS:
        found = told[target.name, "ttft"]
        assert found.trusted, found.reason
        assert found.coverage is not None
        assert found.coverage >= LEAST
        assert found.coverage <= MOST
