"""Where the default policy sends requests, case by case."""

from __future__ import annotations

from core.policy.context import PolicyContext
from core.policy.registry import policy_named
from core.types import ClusterView, Rejection, RequestShape, Role, Route, WorkerView
from tests.support.views import worker


def decide(*members: WorkerView, whole_only: str | None = None) -> Route | Rejection:
    request = RequestShape("r", 100, 16, "interactive", whole_only)
    return policy_named("least-predicted-work").decide(request, ClusterView(members), 0.0)


P, D = Role.PREFILL, Role.DECODE


def test_ties_go_to_the_lesser_ids() -> None:
    members = (worker("p1", P), worker("p0", P), worker("d1", D), worker("d0", D))
    assert decide(*members) == Route("d0", "p0", "least predicted work")


def test_prompt_tokens_in_flight_repel_prompts() -> None:
    members = (worker("p0", P, requests=1, tokens=4000), worker("p1", P, requests=2, tokens=300), worker("d0", D))
    assert decide(*members) == Route("d0", "p1", "least predicted work")


def test_requests_of_other_routers_repel_prompts() -> None:
    members = (worker("p0", P, num_waiting=3), worker("p1", P, requests=1, tokens=500, num_running=1), worker("d0", D))
    assert decide(*members) == Route("d0", "p1", "least predicted work")


def test_running_sequences_and_full_caches_repel_decodes() -> None:
    busy = worker("d0", D, num_running=4, kv_blocks_total=10)
    full = worker("d1", D, num_running=1, kv_blocks_used=9, kv_blocks_total=10)
    calm = worker("d2", D, num_running=2, kv_blocks_used=1, kv_blocks_total=10)
    assert decide(worker("p0", P), busy, full, calm) == Route("d2", "p0", "least predicted work")


def test_requests_just_sent_count_before_the_worker_reports_them() -> None:
    assert decide(worker("p0", P), worker("d0", D, requests=2), worker("d1", D)) == Route(
        "d1", "p0", "least predicted work"
    )


def test_pair_is_chosen_as_a_pair() -> None:
    members = (
        worker("p0", P, model="a"),
        worker("d0", D, model="a", num_running=40),
        worker("p1", P, model="b", requests=1, tokens=200),
        worker("d1", D, model="b"),
    )
    assert decide(*members) == Route("d1", "p1", "least predicted work")


def test_whole_request_goes_to_decode_with_its_reason() -> None:
    assert decide(worker("p0", P), worker("d0", D), whole_only="n>1") == Route("d0", None, "n>1")


def test_unlike_pair_leaves_decode_alone() -> None:
    reason = "no prefill worker has the fingerprint of a decode worker"
    assert decide(worker("p0", P, model="b"), worker("d0", D)) == Route("d0", None, reason)


def test_no_prefill_leaves_decode_alone() -> None:
    assert decide(worker("d0", D)) == Route("d0", None, "no prefill worker")


def test_no_decode_makes_prefill_serve_whole() -> None:
    assert decide(worker("p1", P), worker("p0", P), whole_only="echo") == Route("p0", None, "no decode worker")


def test_draining_workers_get_nothing() -> None:
    assert decide(worker("p0", P), worker("d0", D, draining=True)) == Route("p0", None, "no decode worker")
    assert decide(worker("p0", P, draining=True), worker("d0", D)) == Route("d0", None, "no prefill worker")


def test_nothing_at_all_is_rejected() -> None:
    assert decide() == Rejection("no_worker", "no worker is connected that takes requests", 1.0)


def test_short_prompts_run_whole_where_the_operator_says_so() -> None:
    members = ClusterView((worker("p0", P), worker("d0", D, num_waiting=1), worker("d1", D)))
    policy = policy_named("least-predicted-work", PolicyContext(whole_below_tokens=100))
    short, longer = RequestShape("r", 100, 16, "interactive"), RequestShape("r", 101, 16, "interactive")
    assert policy.decide(short, members, 0.0) == Route("d1", None, "at most 100 prompt tokens")
    assert policy.decide(longer, members, 0.0) == Route("d1", "p0", "least predicted work")
