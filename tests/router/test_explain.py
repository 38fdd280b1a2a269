"""Requests are explained to their own tenant, as long as there is room to remember them.

Invariants of the ring: count and bytes within their bounds; what is kept is what ended last; a request of another
tenant is never found.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.policy.least_work import LeastPredictedWork
from core.types import ClusterView, Rejection, Role, Route
from router.explain import MAX_CANDIDATES, Explainer
from router.explanation import Actual, CacheUse, Choice, FailedTry, Held, Predicted, Stage
from tests.support.records import (
    FORECAST,
    ROUTE,
    SECOND,
    VIEW,
    TablePolicy,
    begun,
    held,
    routed,
    shape,
    streamed,
)
from tests.support.views import worker


def explainer(policy: object = None, **limits: int) -> Explainer:
    settings = {"max_requests": 100} | limits
    return Explainer(policy or TablePolicy(), clock=lambda: 10.5, **settings)  # type: ignore[arg-type]


def test_an_ended_request_is_explained_whole() -> None:
    policy = TablePolicy()
    made = explainer(policy)
    record = streamed(routed(begun()))
    made.ended(record)
    told = made.explain("r1", "")
    assert told is not None
    assert (told.state, told.status, told.verdict) == ("ended", 200, "kept")
    because = "30 ms sooner than prefill-0 + decode-1, most of it wait for blocks (30 ms less)"
    assert told.choice == Choice("route", 1.0, "decode-0", "prefill-0", "least predicted TTFT", because)
    assert [(c.decode, c.chosen) for c in told.candidates] == [("decode-0", True), ("decode-1", False)]
    assert told.candidates[1].ttft == Predicted(102.0, 76.5, 127.5)
    assert told.predicted_ttft == Predicted(73.0, 55.0, 91.0)  # 1 ms had passed
    assert told.predicted_tpot == Predicted(20.0, 18.0, 22.0)
    assert told.actual == Actual(80.0, 20.0, 460.0, 20)
    assert told.cache == CacheUse(500, 512, 96, 32, 128, 0, 511)
    assert told.timeline.until == "first byte"
    assert (
        sum(round(stage.ms * 1000) for stage in told.timeline.stages) == 80_000 == round(told.timeline.total_ms * 1e3)
    )
    assert Stage("transfer_exposed", 10.0) in told.timeline.stages
    assert told.timeline.transfer_hidden_ms == 30.0


def test_the_policy_is_asked_again_with_the_very_objects_it_decided_on() -> None:
    policy = TablePolicy()
    made = explainer(policy)
    record = begun()
    record.decided(shape(), VIEW, {"decode-1"}, 10.001, ROUTE)
    made.began(record)
    made.explain("r1", "")
    [(request, view, now_s, limit)] = policy.asked
    assert (request, now_s, limit) == (record.shape, 10.001, MAX_CANDIDATES)
    assert view == VIEW.without({"decode-1"})
    assert record.view is VIEW


def test_a_running_request_is_explained_up_to_now() -> None:
    made = explainer()
    record = routed(begun())
    made.began(record)
    told = made.explain("r1", "")
    assert told is not None
    assert (told.state, told.verdict, told.timeline.until, told.timeline.total_ms) == ("running", "running", "now", 500)
    made.ended(streamed(record))
    ended = made.explain("r1", "")
    assert ended is not None
    assert ended.state == "ended"


def test_holds_failures_and_refusals_are_told() -> None:
    made = explainer()
    record = held(begun())
    record.failed("worker_lost")
    record.decided(shape(), VIEW, {"decode-0"}, 10.04, Rejection("overloaded", "all full", 2.0, 2.5, 0.9))
    record.ended(10.05, first_s=None)
    record.status, record.outcome, record.error, record.kept = 429, "rejected", "overloaded", False
    made.ended(record)
    told = made.explain("r1", "")
    assert told is not None
    assert told.verdict == "refused: overloaded"
    assert told.holds == (Held(1.0, 90.0, "no room"),)
    assert told.failed_tries == (FailedTry("decode-0", "prefill-0", "worker_lost"),)
    because = "the best route, prefill-0 + decode-0, was expected to answer after 0.072 s"
    assert told.choice == Choice("rejection", 40.0, None, None, "overloaded: all full", because, 2500.0, 0.9)
    assert told.predicted_ttft is None


@pytest.mark.parametrize(
    ("routes", "because"),
    [
        ((ROUTE,), "it was the only route"),
        ((ROUTE, SECOND._replace(forecast=None)), "preferred to prefill-0 + decode-1"),
        (
            (ROUTE, Route("decode-1", None, "x", FORECAST._replace(queue_s=0.0, tpot_s=0.03))),
            "10 ms less for each token than decode-1 alone, 10 ms later",
        ),
        (
            (ROUTE, Route("decode-1", None, "x", FORECAST._replace(tpot_s=0.03))),
            "10 ms less for each token than decode-1 alone, as soon",
        ),
        ((ROUTE, SECOND._replace(forecast=FORECAST)), "preferred to prefill-0 + decode-1: least predicted TTFT"),
    ],
)
def test_the_reason_compares_with_the_next_best(routes: tuple[Route, ...], because: str) -> None:
    made = explainer(TablePolicy(routes))
    made.ended(streamed(routed(begun())))
    told = made.explain("r1", "")
    assert told is not None
    assert told.choice is not None
    assert told.choice.because == because


def test_the_route_taken_is_among_the_candidates_whatever_the_policy_lists() -> None:
    made = explainer(TablePolicy((SECOND,)))
    made.ended(streamed(routed(begun())))
    told = made.explain("r1", "")
    assert told is not None
    assert [c.decode for c in told.candidates if c.chosen] == ["decode-0"]


def test_a_policy_that_does_not_predict_has_no_candidates() -> None:
    made = explainer(LeastPredictedWork())
    made.ended(streamed(routed(begun(), ROUTE._replace(forecast=None))))
    told = made.explain("r1", "")
    assert told is not None
    assert (told.candidates, told.predicted_ttft) == ((), None)
    assert told.choice is not None
    assert told.choice.because == "the policy does not predict"


def test_a_request_that_was_refused_before_any_decision_is_told_too() -> None:
    made = explainer()
    record = begun()
    record.ended(10.002, first_s=None)
    record.status, record.outcome, record.error = 400, "client_error", "the body is not valid JSON"
    made.ended(record)
    told = made.explain("r1", "")
    assert told is not None
    assert (told.choice, told.candidates, told.timeline.until) == (None, (), "end")
    assert told.verdict == "client_error: the body is not valid JSON"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(("", "t", "u"))), max_size=40), st.integers(0, 5))
def test_the_ring_keeps_the_latest_of_each_tenant(requests: list[tuple[str, str]], limit: int) -> None:
    made = explainer(max_requests=limit)
    for request_id, tenant in requests:
        record = routed(begun(request_id, tenant=tenant))
        made.began(record)
        made.ended(streamed(record))
        assert len(made) <= limit
    latest = list(dict.fromkeys(reversed(requests)))[:limit]
    for request_id in "abcdef":
        for tenant in ("", "t", "u"):
            found = made.explain(request_id, tenant)
            assert (found is not None) == ((request_id, tenant) in latest)
        owner = next((tenant for found_id, tenant in latest if found_id == request_id), None)
        assert made.explain(request_id, None) == (None if owner is None else made.explain(request_id, owner))
    assert (made.kept_bytes == 0) == (len(made) == 0)


def test_the_ring_is_bounded_in_bytes() -> None:
    made = explainer(max_requests=10_000, max_bytes=50_000)
    for number in range(200):
        view = ClusterView(tuple(worker(f"decode-{i}", Role.DECODE, requests=number) for i in range(20)))
        made.ended(streamed(routed(begun(f"r{number}"), view=view)))
        assert made.kept_bytes <= 50_000
    assert 0 < len(made) < 10
    assert made.explain("r199", "") is not None


def test_a_view_that_requests_share_is_counted_once() -> None:
    made = explainer()
    sizes = []
    for number in range(3):
        before = made.kept_bytes
        made.ended(streamed(routed(begun(f"r{number}"))))
        sizes.append(made.kept_bytes - before)
    assert sizes[0] > sizes[1] == sizes[2]


def test_an_id_that_is_used_again_while_it_runs_names_the_later_request() -> None:
    made = explainer()
    first, second = begun(), routed(begun())
    made.began(first)
    made.began(second)
    first.ended(10.1, first_s=None)
    made.ended(first)
    told = made.explain("r1", "")
    assert told is not None
    assert told.state == "running"
