"""The full gear: the same engines as the search gear, and the policy objects of the router.

- Every request ends exactly once and no KV block is left.
- Equal arguments, equal outcomes; the number of requests a policy refuses is the number refused.
- Views are as old as they are said to be, and tell no output lengths.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.policy.context import PolicyContext
from core.policy.protocol import Policy
from core.policy.registry import POLICIES, policy_named
from core.types import ClusterView, Decision, Rejection, RequestShape, Role, Route, WorkerSpeed, WorkerView
from sim.cluster import Admission, LinkSpec, Outage, Routing, Rule
from sim.outcome import End
from sim.policy_gear import Refused, context_of, gears_differ, simulate_with_policy
from sim.simulate import simulate
from sim.workload import Workload
from tests.sim.gear_setting import TARGETS, cluster, pool, run, workload
from tests.support.contexts import COST


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


def test_frames_correct_costs_that_are_wrong() -> None:
    spec = cluster(1, 1)
    right = context_of(spec, TARGETS)
    halved = {role: replace(facts, cost=COST.scaled(prefill=0.5, decode=0.5)) for role, facts in right.pools.items()}
    for known, factor in ((right, 1.0), (replace(right, pools=halved), 2.0)):
        policy = Watched()
        simulate_with_policy(spec, workload(300, 5.0), TARGETS, policy, predicted_by=known)
        prefill, decode = (policy.worker(299, name).speed for name in ("prefill-0", "decode-0"))
        assert prefill.prefill_factor == pytest.approx(factor, rel=0.1)
        assert decode.decode_factor == pytest.approx(factor, rel=0.1)
    simulate_with_policy(spec, workload(50), TARGETS, blind := Watched())
    assert blind.worker(49, "decode-0").speed == WorkerSpeed()


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
