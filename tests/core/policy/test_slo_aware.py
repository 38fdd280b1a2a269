"""What the predicting policy chooses and refuses, case by case; times are those of tests.support.contexts.COST."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import pytest

from core.policy.registry import policy_named
from core.policy.slo_aware import UNKNOWN_COSTS, WHOLE, SLOAware
from core.types import ClusterView, Decision, Rejection, RequestShape, Role, Route, WorkerView
from tests.support.contexts import context
from tests.support.views import worker

P, D = Role.PREFILL, Role.DECODE
WAY = tuple[str, str | None, str]
PAIR = "least predicted TTFT"


def decide(
    *members: WorkerView, tokens: int = 1000, whole_only: str | None = None, now_s: float = 0.0, **known: Any
) -> WAY | Rejection:
    """Decide, and check that what is predicted adds up; a route comes as (decode, prefill, reason)."""
    request = RequestShape("r", tokens, 16, "interactive", whole_only)
    return way(policy_named("slo-aware", context(**known)).decide(request, ClusterView(members), now_s))


def way(decision: Decision) -> WAY | Rejection:
    if isinstance(decision, Rejection):
        return decision
    assert isinstance(decision, Route)
    assert decision.forecast is not None
    return decision.decode, decision.prefill, decision.reason


def test_prefill_worker_that_is_free_first_is_taken() -> None:
    long_begun = worker("p0", P, requests=1, tokens=3000, since_s=0.0)
    short_new = worker("p1", P, requests=1, tokens=1000, since_s=0.3)
    assert decide(long_begun, short_new, worker("d0", D), now_s=0.3) == ("d0", "p0", PAIR)
    assert decide(long_begun, short_new, worker("d0", D), now_s=0.0) == ("d0", "p1", PAIR)


def test_decode_worker_with_the_least_tpot_is_taken() -> None:
    few_long = worker("d0", D, num_running=1, kv_blocks_used=1000, kv_blocks_total=9000)
    many_short = worker("d1", D, num_running=5, kv_blocks_used=10, kv_blocks_total=9000)
    assert decide(worker("p0", P), few_long, many_short) == ("d1", "p0", PAIR)


def test_room_comes_before_speed() -> None:
    full = worker("d0", D, kv_blocks_used=9, kv_blocks_total=10)
    slow = worker("d1", D, num_running=20, kv_blocks_total=9000)
    assert decide(worker("p0", P), full, slow) == ("d1", "p0", PAIR)


def test_pair_is_chosen_among_like_fingerprints() -> None:
    members = (
        worker("p0", P, model="a"),
        worker("d0", D, model="a", num_running=31),
        worker("p1", P, model="b", requests=1, tokens=100),
        worker("d1", D, model="b"),
    )
    assert decide(*members) == ("d1", "p1", PAIR)


def test_request_that_is_late_everywhere_is_refused_with_the_time_to_come_back() -> None:
    busy = worker("p0", P, requests=1, tokens=4000, since_s=0.0)
    assert decide(busy, worker("d0", D)) == ("d0", "p0", PAIR)
    refused = decide(busy, worker("d0", D), admit_by_ttft=True)
    assert isinstance(refused, Rejection)
    assert refused.error == "overloaded"
    # 410 ms are owed, 125 ms may join its step, 110 ms its own, and a step of 12 ms gives the first token.
    late_s = 0.410 + 0.125 + 0.110 + 0.012 - 0.5
    chance = zlib.crc32(b"r") / 2**32
    assert refused.earliest_s == pytest.approx(late_s * (1 + chance))
    assert refused.retry_after_s == refused.earliest_s
    assert refused.reason == "TTFT 532 ms to 657 ms is the least predicted, the target is 500 ms"
    assert decide(busy, worker("d0", D), admit_by_ttft=True, now_s=0.16) == ("d0", "p0", PAIR)


def test_prompt_that_can_never_be_in_time_is_not_asked_back() -> None:
    refused = decide(worker("p0", P), worker("d0", D), tokens=5000, admit_by_ttft=True)
    assert isinstance(refused, Rejection)
    assert (refused.error, refused.retry_after_s) == ("slo_infeasible", None)


def test_output_that_would_be_slow_everywhere_is_refused() -> None:
    crowded = worker("d0", D, num_running=31, kv_blocks_used=1000)
    assert decide(worker("p0", P), crowded, admit_by_ttft=True) == ("d0", "p0", PAIR)
    refused = decide(worker("p0", P), crowded, admit_by_tpot=True)
    assert isinstance(refused, Rejection)
    assert (refused.error, refused.retry_after_s) == ("overloaded", refused.earliest_s)


def test_short_prompt_runs_whole_where_that_keeps_the_promise() -> None:
    members = (worker("p0", P), worker("d0", D, num_running=2), worker("d1", D))
    assert decide(*members, tokens=100, whole_below_tokens=100) == ("d1", None, "at most 100 prompt tokens")
    assert decide(*members, tokens=101, whole_below_tokens=100) == ("d1", "p0", PAIR)
    crowded = (worker("p0", P), worker("d0", D, num_running=31, kv_blocks_used=1000))
    assert decide(*crowded, tokens=100, whole_below_tokens=100) == ("d0", "p0", PAIR)


def test_prompt_that_the_pair_is_late_with_overflows_to_decode() -> None:
    busy = worker("p0", P, requests=1, tokens=9000)
    assert decide(busy, worker("d0", D), overflow=True) == ("d0", None, "the pair would be late")
    both_busy = (busy, worker("d0", D, requests=1, tokens=9000))
    assert decide(*both_busy, overflow=True) == ("d0", "p0", PAIR)
    assert isinstance(decide(*both_busy, overflow=True, admit_by_ttft=True), Rejection)


def test_whole_requests_are_admitted_by_the_worker_that_serves_them() -> None:
    busy, idle = worker("d0", D, requests=1, tokens=9000), worker("d1", D)
    assert decide(worker("p0", P), busy, idle, whole_only="n>1", admit_by_ttft=True) == ("d1", None, "n>1")
    refused = decide(worker("p0", P), busy, whole_only="n>1", admit_by_ttft=True)
    assert isinstance(refused, Rejection)


def test_class_without_a_target_is_always_admitted() -> None:
    busy = worker("p0", P, requests=1, tokens=90_000)
    known = context(targets={}, admit_by_ttft=True, admit_by_tpot=True)
    request = RequestShape("r", 1000, 16, "interactive")
    decision = policy_named("slo-aware", known).decide(request, ClusterView((busy, worker("d0", D))), 0.0)
    assert way(decision) == ("d0", "p0", PAIR)


def test_short_prompt_runs_whole_unasked_only_where_nothing_is_at_stake() -> None:
    idle, crowded = worker("d0", D, num_running=2), worker("d0", D, num_running=30, kv_blocks_used=1000)
    assert decide(worker("p0", P), idle, tokens=100) == ("d0", None, WHOLE)
    assert decide(worker("p0", P), idle, tokens=400) == ("d0", "p0", PAIR)  # outputs would stand still for 50 ms
    assert decide(worker("p0", P), crowded, tokens=100) == ("d0", "p0", PAIR)
    tight = replace(idle, tightest_tpot_s=0.014)
    assert decide(worker("p0", P), tight, tokens=100) == ("d0", "p0", PAIR)


@pytest.mark.parametrize(("owed", "running", "is_whole"), [(1, 8, False), (3000, 8, True), (3000, 22, False)])
def test_request_runs_whole_unasked_only_where_decode_is_the_less_strained_side(
    owed: int, running: int, is_whole: bool
) -> None:
    members = (worker("p0", P, requests=1, tokens=owed), worker("d0", D, num_running=running))
    assert decide(*members, tokens=100) == (("d0", None, WHOLE) if is_whole else ("d0", "p0", PAIR))
    late = (worker("p0", P, requests=1, tokens=9000), members[1])
    overflows = decide(*late, overflow=True)
    assert overflows == (("d0", "p0", PAIR) if running > 8 else ("d0", None, "the pair would be late"))
    assert decide(*members, tokens=100, whole_below_tokens=100) == ("d0", None, "at most 100 prompt tokens")


def test_options_are_those_that_were_open_best_first() -> None:
    members = (
        worker("p0", P, requests=1, tokens=500),
        worker("p1", P),
        worker("p2", P, model="b"),
        worker("d0", D, num_running=3),
        worker("d1", D),
    )
    policy = policy_named("slo-aware", context())
    assert isinstance(policy, SLOAware)
    request, view = RequestShape("r", 1000, 16, "interactive"), ClusterView(members)
    options = policy.options(request, view, 0.0, limit=9)
    assert options[0] == policy.decide(request, view, 0.0)
    assert sorted((o.decode, o.prefill or "") for o in options) == [
        ("d0", ""), ("d0", "p0"), ("d0", "p1"), ("d1", ""), ("d1", "p0"), ("d1", "p1"),
    ]  # fmt: skip
    assert policy.options(request, view, 0.0, limit=2) == options[:2]
    assert policy.options(request, ClusterView(), 0.0, limit=2) == ()
    alone = policy.options(request._replace(whole_only="n>1"), view, 0.0, limit=9)
    assert {o.prefill for o in alone} == {None}


def test_options_of_a_policy_that_knows_no_costs_are_what_it_decides() -> None:
    policy = policy_named("slo-aware")
    assert isinstance(policy, SLOAware)
    view = ClusterView((worker("p0", P), worker("d0", D)))
    (only,) = policy.options(RequestShape("r", 10, 1, "x"), view, 0.0, limit=3)
    assert (only.decode, only.prefill, only.reason, only.forecast) == ("d0", "p0", UNKNOWN_COSTS, None)
