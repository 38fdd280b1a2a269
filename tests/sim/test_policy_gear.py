"""The full gear: the same engines as the search gear, and the policy objects of the router.

- Every request ends exactly once and no KV block is left.
- Equal arguments, equal outcomes; the number of requests a policy refuses is the number refused.
- What is held ends exactly once too, is let go in the order of its keys, and is asked about again when there is room.
- Views are as old as they are said to be, and tell no output lengths.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.policy.context import PolicyContext
from core.policy.protocol import Policy
from core.policy.registry import POLICIES, policy_named
from core.types import ClusterView, Decision, HeldWork, Hold, Rejection, RequestShape, Role, Route, WorkerView
from sim.cluster import Admission, ClusterSpec, LinkSpec, Mode, Outage, PoolSpec, Routing, Rule
from sim.outcome import End, Outcome, Target
from sim.policy_gear import LONGEST_HOLD_S, Refused, context_of, gears_differ, simulate_with_policy
from sim.simulate import simulate
from sim.workload import Workload
from tests.support.contexts import COST

TARGETS = (Target("interactive", 0.5, 0.05),)


def pool(replicas: int, **changes: int) -> PoolSpec:
    return replace(PoolSpec(replicas, COST, kv_capacity_tokens=20_000, max_num_seqs=32), **changes)  # type: ignore[arg-type]


def cluster(prefill: int = 2, decode: int = 2, **changes: object) -> ClusterSpec:
    mode = Mode.DISAGGREGATED if prefill else Mode.ONE_POOL_CHUNKED
    return replace(ClusterSpec(mode, pool(decode), pool(prefill) if prefill else None), **changes)  # type: ignore[arg-type]


def workload(count: int = 200, rate: float = 10.0, seed: int = 0) -> Workload:
    random = np.random.default_rng(seed)
    arrived = np.cumsum(random.exponential(1 / rate, count))
    return Workload("chat", arrived - arrived[0], random.integers(1, 1500, count), random.integers(1, 100, count))


def run(
    spec: ClusterSpec,
    load: Workload,
    policy: str = "slo-aware",
    *,
    may_hold: bool = False,
    refused: Refused = Refused.GIVE_UP,
) -> Outcome:
    known = context_of(spec, TARGETS, may_hold=may_hold)
    return simulate_with_policy(spec, load, TARGETS, policy_named(policy, known), refused=refused)


class Watched:
    """Keeps what a policy is shown, and sends everything to the first pair."""

    def __init__(self) -> None:
        self.seen: list[tuple[RequestShape, ClusterView, float]] = []

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Route | Rejection:
        self.seen.append((request, cluster, now_s))
        decode, prefill = (cluster.of_role(role)[0].record.worker_id for role in (Role.DECODE, Role.PREFILL))
        return Route(decode, prefill, "the first")

    def worker(self, decision: int, worker_id: str) -> WorkerView:
        return next(w for w in self.seen[decision][1].workers if w.record.worker_id == worker_id)


class RefuseOdd:
    """Refuses every second request."""

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        if request.sequence % 2:
            return Rejection("overloaded", "odd", 1.0)
        return policy_named("least-loaded").decide(request, cluster, now_s)


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


@settings(max_examples=25)
@given(
    prefill=st.integers(0, 3),
    decode=st.integers(1, 3),
    rate=st.sampled_from((2.0, 20.0, 200.0)),
    policy=st.sampled_from(sorted(POLICIES)),
    routing=st.builds(
        Routing,
        admission=st.sampled_from(Admission),
        whole_below_tokens=st.sampled_from((0, 300)),
        overflow=st.booleans(),
        state_delay_s=st.sampled_from((0.0, 0.2)),
    ),
    may_hold=st.booleans(),
    refused=st.sampled_from(Refused),
    seed=st.integers(0, 5),
)
def test_every_request_ends_once_and_leaves_nothing(
    prefill: int,
    decode: int,
    rate: float,
    policy: str,
    routing: Routing,
    may_hold: bool,
    refused: Refused,
    seed: int,
) -> None:
    spec = cluster(prefill, decode, routing=routing)
    load = workload(60, rate, seed)
    outcome, again = (run(spec, load, policy, may_hold=may_hold, refused=refused) for _ in range(2))
    assert set(outcome.end.tolist()) <= {End.DONE, End.REFUSED}
    assert outcome.blocks_held == 0
    assert (outcome.ttft_s[outcome.end == End.DONE] > 0).all()
    assert (again.ttft_s == outcome.ttft_s).all()
    assert (again.decode_worker == outcome.decode_worker).all()


class Shuffling:
    """Asks another policy with the workers in another order each time."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        order = np.random.default_rng(request.sequence).permutation(len(cluster.workers))
        workers = tuple(cluster.workers[i] for i in order)
        return self.policy.decide(request, replace(cluster, workers=workers), now_s)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_the_order_of_the_workers_does_not_matter(name: str) -> None:
    spec, load = cluster(3, 3, routing=Routing(admission=Admission.TTFT_AND_TPOT)), workload(300, 30.0)
    known = context_of(spec, TARGETS, may_hold=True)
    plain = simulate_with_policy(spec, load, TARGETS, policy_named(name, known))
    shuffled = simulate_with_policy(spec, load, TARGETS, Shuffling(policy_named(name, known)))
    assert (plain.ttft_s == shuffled.ttft_s).all()
    assert (plain.decode_worker == shuffled.decode_worker).all()


def test_policies_are_told_what_is_believed_of_prefix_caches() -> None:
    # The first two share two blocks of 512 tokens, the third shares the first block; nothing is shared with the last.
    load = Workload(
        "few",
        np.array([0.0, 1.0, 2.0, 3.0]),
        np.array([1500] * 4),
        np.array([5] * 4),
        prefix_start=np.array([0, 2, 4, 6, 8]),
        prefix_ids=np.array([0, 1, 0, 1, 0, 2, 3, 4]),
    )
    policy = Watched()
    simulate_with_policy(cluster(prefix_cache=True), load, TARGETS, policy)
    told = [request.cached for request, _, _ in policy.seen]
    assert told == [(), (("prefill-0", 1024),), (("prefill-0", 512),), ()]
    simulate_with_policy(cluster(prefix_cache=False), load, TARGETS, unaware := Watched())
    assert not any(request.cached for request, _, _ in unaware.seen)


def test_affinity_to_prefixes_saves_prompts() -> None:
    rng = np.random.default_rng(0)
    chats = rng.integers(0, 30, 400)  # every request repeats the 2,048 tokens of one of thirty chats
    load = replace(
        workload(400, 20.0),
        prompt_tokens=np.full(400, 2100),
        prefix_start=np.arange(401) * 4,
        prefix_ids=(chats[:, None] * 4 + np.arange(4)).reshape(-1),
    )
    spec = cluster(4, 4, prefix_cache=True)
    affine, blind = run(spec, load, "prefix-affinity"), run(spec, load, "least-loaded")
    assert affine.ttft_s.mean() < 0.8 * blind.ttft_s.mean()


def test_both_gears_place_alike_where_only_one_worker_fits() -> None:
    # The operator's limit keeps the policy from running short prompts whole by its own judgement.
    spec, load = cluster(1, 1, routing=Routing(whole_below_tokens=1)), workload(300, 4.0)
    search, full = simulate(spec, load, TARGETS), run(spec, load)
    assert (search.ttft_s == full.ttft_s).all()
    assert (search.e2e_s == full.e2e_s).all()


@pytest.mark.parametrize(("rule", "policy"), [(Rule.LEAST_LOADED, "least-loaded"), (Rule.ROUND_ROBIN, "round-robin")])
def test_like_rules_of_both_gears_keep_alike(rule: Rule, policy: str) -> None:
    spec, load = cluster(3, 3, routing=Routing(rule=rule)), workload(1500, 15.0)
    search, full = simulate(spec, load, TARGETS), run(spec, load, policy)
    assert search.attainment(TARGETS)[0] == pytest.approx(full.attainment(TARGETS)[0], abs=0.03)


@pytest.mark.parametrize("admission", [Admission.OFF, Admission.TTFT, Admission.TTFT_AND_TPOT])
def test_the_predicting_policy_keeps_as_much_as_the_predicting_rule(admission: Admission) -> None:
    spec, load = cluster(3, 3, routing=Routing(admission=admission)), workload(1500, 25.0)
    search, full = simulate(spec, load, TARGETS), run(spec, load)
    assert search.attainment(TARGETS)[0] == pytest.approx(full.attainment(TARGETS)[0], abs=0.05)


def test_gears_agree_on_pipeline_stages_and_one_pool() -> None:
    staged = replace(cluster(2, 2), decode=pool(2, pipeline_parallel=2), prefill=pool(2, pipeline_parallel=2))
    for spec, load in ((staged, workload(1000, 35.0)), (cluster(0, 4), workload(1000, 20.0))):
        search, full = simulate(spec, load, TARGETS), run(spec, load)
        assert 0.2 < search.attainment(TARGETS)[0] < 0.99
        assert search.attainment(TARGETS)[0] == pytest.approx(full.attainment(TARGETS)[0], abs=0.05)
        assert gears_differ(spec, load, TARGETS) == pytest.approx(
            search.attainment(TARGETS)[0] - full.attainment(TARGETS)[0]
        )


def test_what_the_policy_rejects_is_refused() -> None:
    outcome = simulate_with_policy(cluster(), workload(100), TARGETS, RefuseOdd())
    assert (outcome.end == np.where(np.arange(100) % 2, End.REFUSED, End.DONE)).all()


def test_policies_are_told_what_a_router_knows() -> None:
    policy, load = Watched(), workload(50)
    simulate_with_policy(cluster(), load, TARGETS, policy)
    shapes = [request for request, _, _ in policy.seen]
    assert shapes == [
        RequestShape(str(i), int(tokens), None, "interactive", None, i) for i, tokens in enumerate(load.prompt_tokens)
    ]
    assert [now_s for _, _, now_s in policy.seen] == load.arrived_s.tolist()
    ids = [w.record.worker_id for w in policy.seen[0][1].workers]
    assert ids == ["decode-0", "decode-1", "prefill-0", "prefill-1"]


def test_legs_in_flight_are_known_at_once_and_frames_as_late_as_they_are_said_to_be() -> None:
    # A prompt takes 110 ms; the second request comes while it is at work, the third and fourth after its end.
    load = Workload("few", np.array([0.0, 0.05, 0.5, 0.6]), np.array([1000] * 4), np.array([50] * 4))
    seen: dict[float, Watched] = {}
    for delay_s in (0.0, 0.45):
        seen[delay_s] = Watched()
        spec = cluster(1, 1, routing=Routing(state_delay_s=delay_s))
        simulate_with_policy(spec, load, TARGETS, seen[delay_s])
    for policy in seen.values():
        busy = policy.worker(1, "prefill-0")
        assert (busy.inflight_requests, busy.inflight_prompts, busy.inflight_prompt_tokens) == (1, 1, 1000)
        assert (busy.prompting_since_s, busy.inflight_prompt_pairs) == (0.0, 500_000.0)
        assert policy.worker(2, "prefill-0").inflight_prompts == 0
        assert policy.worker(2, "decode-0").inflight_requests == 2
    assert seen[0.0].worker(2, "decode-0").state.num_running == 2
    assert seen[0.45].worker(2, "decode-0").state.num_running == 0  # as at 0.05 s, before the first hand-over
    assert seen[0.45].worker(3, "decode-0").state.num_running == 1  # as at 0.15 s, after the first


def test_lost_workers_are_not_offered() -> None:
    policy = Watched()
    spec = cluster(2, 1, outages=(Outage(worker=0, from_s=1.0, until_s=2.0),))
    outcome = simulate_with_policy(spec, workload(40), TARGETS, policy)
    for _, view, now_s in policy.seen:
        is_there = any(w.record.worker_id == "prefill-0" for w in view.workers)
        assert is_there is not (1.0 <= now_s < 2.0)
    assert (outcome.end == End.DONE).all()


def test_a_policy_is_told_what_the_cluster_is() -> None:
    link = LinkSpec(bytes_per_s=1e9, latency_s=0.001, kv_bytes_per_token=1000, layers=4)
    routing = Routing(admission=Admission.TTFT, whole_below_tokens=7, overflow=True)
    spec = cluster(1, 1, link=link, routing=routing, request_overhead_s=0.1, handover_overhead_s=0.2)
    known = context_of(spec, TARGETS)
    assert (known.link.s_per_token, known.link.tail_share, known.link.latency_s) == (1e-6, 0.25, 0.001)
    assert (known.whole_below_tokens, known.overflow, known.admit_by_ttft, known.admit_by_tpot) == (
        7,
        True,
        True,
        False,
    )
    assert (known.request_overhead_s, known.handover_overhead_s) == (0.1, 0.2)
    assert PolicyContext.from_json(known.to_json()) == known


def test_no_arrivals_no_outcome() -> None:
    empty = Workload("none", np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert len(run(cluster(), empty).end) == 0
