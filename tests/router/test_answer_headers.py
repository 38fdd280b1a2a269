"""Answers explain themselves in their headers, streams in a last comment, when they are asked to."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.types import Rejection
from router.answer_headers import document_headers, is_asked, start_headers, stream_comment
from router.life import Timing
from tests.support.records import DECODE_FACTS, ROUTE, begun, routed, streamed


@pytest.mark.parametrize(
    ("value", "asked"), [("1", True), ("true", True), (" True ", True), ("0", False), ("", False), (None, False)]
)
def test_only_a_yes_asks(value: str | None, asked: bool) -> None:
    assert is_asked(value) is asked


def test_the_start_tells_the_pair_the_reason_and_what_is_predicted() -> None:
    assert dict(start_headers(routed(begun()))) == {
        b"x-baton-decode": b"decode-0",
        b"x-baton-prefill": b"prefill-0",
        b"x-baton-reason": b"least predicted TTFT",
        b"x-baton-predicted-ttft-ms": b"73.000",  # from arrival
        b"x-baton-predicted-tpot-ms": b"20.000",
    }


def test_what_is_not_known_is_left_out() -> None:
    alone = ROUTE._replace(prefill=None, forecast=None)
    assert [name for name, _ in start_headers(routed(begun(), alone))] == [b"x-baton-decode", b"x-baton-reason"]
    assert start_headers(routed(begun(), Rejection("overloaded", "full"))) == []
    assert start_headers(begun()) == []


def test_a_document_tells_what_came_of_it() -> None:
    record = routed(begun())
    record.measured(None, DECODE_FACTS)
    headers = dict(document_headers(record, Timing(0.9, None, None, 20)))
    assert headers[b"x-baton-e2e-ms"] == b"900.000"
    assert headers[b"x-baton-ttft-ms"] == b"75.000"  # submitted after 2 ms, 65 to the first step, 8 for it
    assert headers[b"x-baton-verdict"] == b"kept"  # 0.1 s + 19 tokens of 0.05 s
    late = dict(document_headers(record, Timing(1.1, None, None, 20)))
    assert late[b"x-baton-verdict"] == b"missed"
    record.measured(None, None)
    assert b"x-baton-ttft-ms" not in dict(document_headers(record, Timing(0.9, None, None, 20)))


def test_a_stream_ends_with_a_comment_of_one_line() -> None:
    comment = stream_comment(streamed(routed(begun())), Timing(0.46, 0.08, 0.02, 20))
    assert comment.startswith(b": baton {")
    assert comment.endswith(b"}\n\n")
    assert comment.count(b"\n") == 2
    assert orjson.loads(comment.removeprefix(b": baton ")) == {
        "decode": "decode-0",
        "prefill": "prefill-0",
        "reason": "least predicted TTFT",
        "predicted_ttft_ms": 73.0,
        "predicted_tpot_ms": 20.0,
        "ttft_ms": 80.0,
        "tpot_ms": 20.0,
        "e2e_ms": 460.0,
        "verdict": "kept",
    }


@given(st.text())
def test_no_reason_breaks_a_header(reason: str) -> None:
    value = dict(start_headers(routed(begun(), ROUTE._replace(reason=reason))))[b"x-baton-reason"]
    assert not set(value) & {0, 10, 13}
    assert b"\n" not in stream_comment(routed(begun(), ROUTE._replace(reason=reason)), Timing(1, 1, 1, 2))[:-2]
