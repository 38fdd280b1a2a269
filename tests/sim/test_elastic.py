"""Fleets that change while requests run.

Invariants, whatever is decided: each arrival ends exactly once and nothing is held at the end; a device has one role
and serves nothing while it changes; equal seeds give equal outcomes; a fleet that nobody changes is the plain cluster.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.control.actions import Decision, Observation, PoolSizes, RoleFlip
from core.policy.registry import policy_named
from core.types import Role
from sim.cluster import ClusterSpec, Mode, Routing, Rule
from sim.elastic import Fleet
from sim.elastic_run import run_elastic, run_elastic_with_policy
from sim.outcome import End, Target
from sim.policy_gear import context_of
from sim.simulate import simulate
from sim.workload import Workload
from tests.support.small_clusters import arrivals, pool, workloads

TARGETS = (Target("any", 2.0, 0.05),)
PROPERTIES = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def cluster(prefill: int = 1, decode: int = 1) -> ClusterSpec:
    return ClusterSpec(Mode.DISAGGREGATED, pool(decode), pool(prefill))


def fleet(devices: int = 4, prefill: int = 2, decode: int = 2, start_s: float = 5.0) -> Fleet:
    return Fleet(cluster(), devices, prefill, decode, start_s=(start_s, start_s), switch_s=2.0)


class Scripted:
    """Takes, each time, the next of some steps that is possible; keeps what it saw."""

    def __init__(self, *steps: str) -> None:
        self.steps = list(steps)
        self.seen: list[Observation] = []

    def decide(self, observation: Observation) -> Decision | None:
        self.seen.append(observation)
        step = self.steps.pop(0) if self.steps else ""
        now = observation.wanted
        ready = {role: [w for w in observation.workers if w.state == "ready" and w.role is role] for role in Role}
        if step in ("to prefill", "to decode"):
            to = Role(step.removeprefix("to "))
            source = Role.DECODE if to is Role.PREFILL else Role.PREFILL
            if len(ready[source]) > 1:
                return Decision(now.flipped(to), step, (RoleFlip(ready[source][0].worker_id, to),))
        elif step == "start" and now.prefill + now.decode < 4:
            return Decision(PoolSizes(now.prefill, min(3, now.decode + 1)), step)
        elif step == "stop" and len(ready[Role.DECODE]) > 1:
            return Decision(PoolSizes(now.prefill, now.decode - 1), step)
        return None


STEPS = st.lists(st.sampled_from(["", "to prefill", "to decode", "start", "stop"]), max_size=12)


@given(workloads(), STEPS, st.sampled_from(["search", "full"]))
@PROPERTIES
def test_each_arrival_ends_exactly_once_whatever_is_decided(work: Workload, steps: list[str], gear: str) -> None:
    spec, script = fleet(), Scripted(*steps)
    if gear == "search":
        found = run_elastic(spec, work, TARGETS, script, every_s=1.0)
    else:
        policy = policy_named("slo-aware", context_of(spec.cluster, TARGETS, may_hold=True))
        found = run_elastic_with_policy(spec, work, TARGETS, policy, script, every_s=1.0)
    outcome = found.outcome
    assert set(outcome.end.tolist()) <= {End.DONE, End.REFUSED, End.TOO_LONG}
    assert outcome.blocks_held == 0
    assert all(epoch.prefill + epoch.decode <= epoch.devices <= 4 for epoch in found.epochs)
    assert all(epoch.prefill >= 1 and epoch.decode >= 1 for epoch in found.epochs)


@given(workloads(), STEPS)
@PROPERTIES
def test_equal_seeds_give_equal_outcomes(work: Workload, steps: list[str]) -> None:
    first, second = (run_elastic(fleet(), work, TARGETS, Scripted(*steps), every_s=1.0, seed=3) for _ in range(2))
    assert np.array_equal(first.outcome.ttft_s, second.outcome.ttft_s)
    assert (first.device_s, first.flips, first.starts) == (second.device_s, second.flips, second.starts)


@given(workloads(), st.integers(1, 3))
@PROPERTIES
def test_a_fleet_that_nobody_changes_is_the_plain_cluster(work: Workload, prefill: int) -> None:
    # By counts: predictions differ in their last bit where a run is cut into parts, and so may the choice among equals.
    routing = Routing(rule=Rule.LEAST_LOADED)
    spec = replace(fleet(prefill=prefill, decode=4 - prefill), worker=replace(cluster(), routing=routing))
    found = run_elastic(spec, work, TARGETS).outcome
    plain = simulate(replace(cluster(prefill, 4 - prefill), routing=routing), work, TARGETS)
    assert np.allclose(found.ttft_s, plain.ttft_s)
    assert np.allclose(found.tpot_s, plain.tpot_s)
    assert np.array_equal(found.end, plain.end)


def test_a_flip_drains_then_switches_then_joins_with_its_new_role() -> None:
    work = arrivals(*((0.1 * i, 50, 40) for i in range(100)))
    script = Scripted("to prefill")
    found = run_elastic(fleet(), work, TARGETS, script, every_s=1.0)
    states = [next(w for w in seen.workers if w.worker_id == "worker-0002") for seen in script.seen]
    flipping = [w for w in states if w.state == "flipping"]
    assert states[0].role is Role.DECODE
    assert flipping
    assert {w.role for w in flipping} == {Role.PREFILL}
    assert script.seen[1].is_changing
    assert script.seen[1].wanted == PoolSizes(3, 1)
    joined = next(w for w in states[1:] if w.state == "ready")
    assert joined.role is Role.PREFILL
    assert joined.since_s - flipping[0].since_s >= 2.0
    assert found.flips == 1
    assert (found.outcome.end == End.DONE).all()


def test_a_start_takes_its_time_and_costs_from_its_beginning() -> None:
    work = arrivals((0.0, 10, 1), (20.0, 10, 1))
    found = run_elastic(fleet(prefill=1, decode=1), work, TARGETS, Scripted("start"), every_s=1.0)
    ready = [epoch.at_s for epoch in found.epochs if epoch.decode == 2]
    assert ready[0] == pytest.approx(6.0)  # decided at 1 s
    assert found.device_s == pytest.approx(2 * 20 + 19)
    assert found.starts == 1


def test_what_stops_ends_its_requests_first() -> None:
    work = arrivals(*((0.1 * i, 20, 60) for i in range(30)))
    found = run_elastic(fleet(), work, TARGETS, Scripted("stop"), every_s=1.0)
    assert (found.outcome.end == End.DONE).all()
    assert [epoch.devices for epoch in found.epochs][-1] == 3


def test_no_output_length_of_a_running_request_is_seen() -> None:
    work = arrivals((0.0, 20, 400), (0.0, 20, 2), (30.0, 20, 1))
    script = Scripted()
    run_elastic(fleet(), work, TARGETS, script, every_s=1.0)
    assert [sample.output_tokens for seen in script.seen[:5] for sample in seen.samples] == [2]
    assert sum(report.num_ended for seen in script.seen[:5] for report in seen.classes) == 1


def test_a_fleet_needs_both_roles_and_its_devices() -> None:
    with pytest.raises(ValueError, match="both roles"):
        Fleet(ClusterSpec(Mode.ONE_POOL, pool()), 2, 1, 1)
    with pytest.raises(ValueError, match="more than 2 devices"):
        Fleet(cluster(), 2, 2, 1)
