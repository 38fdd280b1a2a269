"""One map from the error tree to HTTP, without a hole."""

from __future__ import annotations

import json

import pytest

from core import errors
from core.types import Rejection
from router.errors import STATUS_BY_ERROR, answer, refusal, status_of, stream_event

ALL = errors.error_classes()
LEAVES = [cls for cls in ALL if not any(issubclass(other, cls) and other is not cls for other in ALL)]


@pytest.mark.parametrize("cls", LEAVES, ids=lambda c: c.name)
def test_every_leaf_is_mapped(cls: type[errors.BatonError]) -> None:
    assert cls in STATUS_BY_ERROR
    status, headers, body = answer(cls("why"))
    assert status == STATUS_BY_ERROR[cls].code
    assert (b"content-type", b"application/json") in headers
    assert (b"x-baton-reason", cls.name.encode()) in headers
    expected = {"message": "why", "type": cls.name, "param": None, "code": status}
    if status == 429:
        expected |= {"slo_class": None, "earliest_feasible_ms": None, "confidence": None}
    assert json.loads(body) == {"error": expected}


def test_leaves_are_the_whole_tree() -> None:
    assert {c.name for c in STATUS_BY_ERROR} == {c.name for c in LEAVES}
    assert len({c.name for c in LEAVES}) == len(LEAVES)


@pytest.mark.parametrize("cls", [errors.BatonError, errors.RequestRejected, errors.WorkerError, errors.KVTransferError])
def test_inner_nodes_are_500(cls: type[errors.BatonError]) -> None:
    assert status_of(cls("why")).code == 500


def test_what_may_pass_by_itself_says_when_to_come_back() -> None:
    def retry_after(error: errors.BatonError, from_policy_s: float | None = None) -> bytes | None:
        return dict(answer(error, from_policy_s)[1]).get(b"retry-after")

    assert retry_after(errors.Overloaded("x", retry_after_s=2.4)) == b"3"
    assert retry_after(errors.Overloaded("x")) == b"1"
    assert retry_after(errors.NoWorker("x"), 7.0) == b"7"
    assert retry_after(errors.NoWorker("x"), 0.01) == b"1"
    assert retry_after(errors.InvalidRequest("x")) is None
    for cls, status in STATUS_BY_ERROR.items():
        if status.code in (429, 502, 503):
            assert retry_after(cls("x")) is not None


def test_param_is_named() -> None:
    assert json.loads(answer(errors.InvalidRequest("x", param="n"))[2])["error"]["param"] == "n"


def test_unauthorized_names_its_scheme() -> None:
    assert (b"www-authenticate", b"Bearer") in answer(errors.Unauthorized("x"))[1]


def test_error_in_a_stream_is_one_event() -> None:
    event = stream_event(errors.WorkerLost("decode-0\nis gone"))
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event[6:])["error"]["code"] == 502


def test_a_refusal_names_its_class_and_the_earliest_time() -> None:
    rejection = Rejection("slo_infeasible", "queue of 2 s", retry_after_s=2.3, earliest_s=1.23401, confidence=0.9)
    status, headers, body = answer(refusal(rejection, slo_class="chat"))
    assert (status, dict(headers)[b"retry-after"], dict(headers)[b"x-baton-reason"]) == (429, b"3", b"slo_infeasible")
    assert json.loads(body)["error"] == {
        "message": "queue of 2 s",
        "type": "slo_infeasible",
        "param": None,
        "code": 429,
        "slo_class": "chat",
        "earliest_feasible_ms": 1235,
        "confidence": 0.9,
    }


def test_a_refusal_that_names_no_class_is_given_that_of_its_request() -> None:
    body = answer(errors.RateLimited("x", retry_after_s=1.0, earliest_s=0.4), slo_class="chat")[2]
    error = json.loads(body)["error"]
    assert (error["slo_class"], error["earliest_feasible_ms"], error["confidence"]) == ("chat", 400, None)


def test_a_refusal_without_a_time_to_retry_names_the_earliest() -> None:
    rejection = Rejection("overloaded", "full", earliest_s=4.2)
    assert dict(answer(refusal(rejection, slo_class="a"), 9.0)[1])[b"retry-after"] == b"9"
    assert dict(answer(refusal(rejection, slo_class="a"))[1])[b"retry-after"] == b"5"


def test_policies_name_errors() -> None:
    rejected = refusal(Rejection("slo_infeasible", "full", 3.0), slo_class="a")
    assert isinstance(rejected, errors.SLOInfeasible)
    assert rejected.retry_after_s == 3.0
    assert isinstance(refusal(Rejection("no_worker", "none", 1.0), slo_class="a"), errors.NoWorker)
    assert isinstance(refusal(Rejection("not in the tree", "none"), slo_class="a"), errors.NoWorker)
