"""What the full gear does with requests that are held or come back.

- What is held ends exactly once, is let go in the order of its keys, and is asked about again when there is room.
- Clients that were told a time come back once.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.policy.registry import policy_named
from core.types import ClusterView, Decision, HeldWork, Hold, Rejection, RequestShape, Role, Route
from sim.cluster import Routing
from sim.outcome import End
from sim.policy_gear import LONGEST_HOLD_S, Refused, simulate_with_policy
from sim.workload import Workload
from tests.sim.gear_setting import TARGETS, cluster, workload


class LateBinding:
    """Gives each prefill worker one prompt at a time, holds the others by `key`, and is `patient` at most so long."""

    def __init__(self, *, patient_s: float = math.inf, ask_s: float = 5.0, newest_first: bool = False) -> None:
        self.patient_s, self.ask_s, self.sign = patient_s, ask_s, -1.0 if newest_first else 1.0
        self.held: list[HeldWork] = []
        self.sent: list[tuple[str, float]] = []

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        self.held.append(cluster.held)
        idle = [w.record.worker_id for w in cluster.of_role(Role.PREFILL) if not w.inflight_prompts]
        if idle:
            self.sent.append((request.request_id, now_s))
            return Route(min(w.record.worker_id for w in cluster.of_role(Role.DECODE)), idle[0], "idle")
        if request.waited_s >= self.patient_s:
            return Rejection("overloaded", "waited long enough", 1.0)
        arrived_s = now_s - request.waited_s
        return Hold("busy", now_s + min(self.ask_s, self.patient_s), 10.0 + self.sign * arrived_s)


@settings(max_examples=20)
@given(
    prefill=st.integers(1, 3),
    rate=st.sampled_from((2.0, 20.0, 200.0)),
    patient_s=st.sampled_from((0.3, math.inf)),
    ask_s=st.sampled_from((0.0, 0.05, 5.0)),
    delay_s=st.sampled_from((0.0, 0.2)),
    newest_first=st.booleans(),
    seed=st.integers(0, 5),
)
def test_what_is_held_ends_once_and_leaves_nothing(
    prefill: int, rate: float, patient_s: float, ask_s: float, delay_s: float, newest_first: bool, seed: int
) -> None:
    spec, load = cluster(prefill, 2, routing=Routing(state_delay_s=delay_s)), workload(60, rate, seed)
    policies = [LateBinding(patient_s=patient_s, ask_s=ask_s, newest_first=newest_first) for _ in range(2)]
    outcome, again = (simulate_with_policy(spec, load, TARGETS, policy) for policy in policies)
    assert set(outcome.end.tolist()) <= {End.DONE, End.REFUSED}
    assert outcome.blocks_held == 0
    ids = [request for request, _ in policies[0].sent]
    assert sorted(ids, key=int) == [str(i) for i in np.flatnonzero(outcome.end == End.DONE)]
    assert policies[0].sent == policies[1].sent
    assert (again.ttft_s == outcome.ttft_s).all()
    for held in policies[0].held:
        assert list(held.keys_s) == sorted(held.keys_s)
        assert len(held.tokens_before) == len(held.keys_s) + 1


def test_what_is_held_goes_in_order_as_soon_as_a_prompt_is_computed() -> None:
    # Prompts of 10 ms + 0.1 ms a token; all come while the first is at work, and nobody would ask for 5 s.
    load = Workload("few", np.array([0.0, 0.01, 0.02, 0.03]), np.array([1000, 400, 200, 100]), np.array([5] * 4))
    policy = LateBinding(newest_first=True)
    outcome = simulate_with_policy(cluster(1, 1), load, TARGETS, policy)
    assert [request for request, _ in policy.sent] == ["0", "3", "2", "1"]
    assert [at_s for _, at_s in policy.sent] == pytest.approx([0.0, 0.11, 0.13, 0.16])
    assert (outcome.end == End.DONE).all()
    shown = [HeldWork(), HeldWork(), HeldWork((9.99,), (0, 400)), HeldWork((9.98, 9.99), (0, 200, 600))]
    assert policy.held[:4] == shown  # to each that arrives
    assert policy.held[4:] == [HeldWork()] * 5  # and nothing goes before the one whose turn it is


def test_old_states_let_go_later_by_their_age() -> None:
    load = Workload("few", np.array([0.0, 0.01]), np.array([1000, 400]), np.array([5] * 2))
    policy = LateBinding()
    simulate_with_policy(cluster(1, 1, routing=Routing(state_delay_s=0.2)), load, TARGETS, policy)
    assert [at_s for _, at_s in policy.sent] == pytest.approx([0.0, 0.21])  # first asked when its own state was known


def test_a_held_request_is_asked_about_when_the_policy_said() -> None:
    load = Workload("few", np.array([0.0, 0.01]), np.array([9000, 10]), np.array([5] * 2))  # the first takes 910 ms
    outcome = simulate_with_policy(cluster(1, 1), load, TARGETS, LateBinding(patient_s=0.3))
    assert outcome.end.tolist() == [End.DONE, End.REFUSED]


class Undecided:
    """Never says where a request goes."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Hold:
        self.asked_s.append(now_s)
        return Hold("unsure", now_s + 100.0, now_s)


def test_a_request_that_is_held_for_ever_is_given_up() -> None:
    policy = Undecided()
    outcome = simulate_with_policy(cluster(), workload(1), TARGETS, policy)
    assert outcome.end.tolist() == [End.UNSERVED]
    assert policy.asked_s == pytest.approx(np.arange(0.0, LONGEST_HOLD_S + 1, 100.0))


class RefuseOnce:
    """Refuses each request when it first comes, with a time or without."""

    def __init__(self, earliest_s: float | None) -> None:
        self.earliest_s = earliest_s
        self.seen: list[tuple[str, int, float, float]] = []
        self.reserved: list[bool] = []
        self.promised: list[HeldWork] = []

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        self.reserved.append(request.is_reserved)
        self.promised.append(cluster.promised)
        is_new = request.request_id not in {name for name, *_ in self.seen}
        self.seen.append((request.request_id, request.sequence, request.waited_s, now_s))
        if is_new or self.earliest_s == 0.25:
            return Rejection("overloaded", "come back", 1.0, self.earliest_s)
        return policy_named("least-loaded").decide(request, cluster, now_s)


@pytest.mark.parametrize(
    ("earliest_s", "ends"), [(0.5, [End.DONE] * 2), (None, [End.REFUSED] * 2), (0.25, [End.REFUSED] * 2)]
)
@pytest.mark.parametrize("refused", [Refused.COME_BACK, Refused.COME_BACK_RESERVED])
@pytest.mark.parametrize("delay_s", [0.0, 0.1])
def test_refused_requests_come_back_once_as_new_ones(
    earliest_s: float | None, ends: list[End], delay_s: float, refused: Refused
) -> None:
    load = Workload("few", np.array([0.0, 0.1]), np.array([1000] * 2), np.array([5] * 2))
    spec, policy = cluster(1, 1, routing=Routing(state_delay_s=delay_s)), RefuseOnce(earliest_s)
    outcome = simulate_with_policy(spec, load, TARGETS, policy, refused=refused)
    assert outcome.end.tolist() == ends
    if earliest_s is not None:
        assert outcome.arrived_s == pytest.approx(load.arrived_s + earliest_s)
        again = [("0", 2, 0.0, earliest_s), ("1", 3, 0.0, 0.1 + earliest_s)]
        reserved = refused is Refused.COME_BACK_RESERVED
        assert policy.reserved == [False, False, reserved, reserved]
        due = [earliest_s, 0.1 + earliest_s] if reserved else []
        assert [list(work.keys_s) for work in policy.promised] == [[], due[:1], due[1:], []]
        assert policy.seen == [("0", 0, 0.0, 0.0), ("1", 1, 0.0, 0.1), *again]
    if ends[0] is End.DONE:
        alone = simulate_with_policy(spec, load, TARGETS, policy_named("least-loaded"))
        assert outcome.ttft_s == pytest.approx(alone.ttft_s)
