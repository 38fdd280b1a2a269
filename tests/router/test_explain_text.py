"""What `baton explain` prints, by example."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from core.types import Rejection
from router.explain import Explainer
from router.explain_text import explanation_lines, explanation_of
from router.explanation import Explanation
from router.record import RequestRecord
from tests.support.records import TablePolicy, begun, held, routed, streamed


def told(record: RequestRecord) -> Explanation:
    made = Explainer(TablePolicy(), clock=lambda: 10.5, max_requests=1)
    made.ended(record)
    found = made.explain(record.request_id, record.tenant)
    assert found is not None
    return found


def test_a_request_in_lines() -> None:
    assert explanation_lines(told(streamed(held(begun())))) == [
        "r1 /v1/completions: kept",
        "  class    chat: TTFT 100 ms, TPOT 50 ms",
        "  route    prefill-0 + decode-0, decided after 4 ms: least predicted TTFT",
        "  because  30 ms sooner than prefill-0 + decode-1, most of it wait for blocks (30 ms less)",
        "  held     after 1 ms, until 90 ms at the latest: no room",
        "",
        "         PREDICTED  90 % INTERVAL   ACTUAL    TARGET",
        "  TTFT   76.0 ms    58.0 - 94.0 ms  80.0 ms   100.0 ms",
        "  TPOT   20.0 ms    18.0 - 22.0 ms  20.0 ms   50.0 ms",
        "  total  -          -               460.0 ms  20 tokens",
        "",
        "candidates, as expected at the decision:",
        "     PREFILL WORKER  DECODE WORKER  TTFT             TPOT            QUEUE    PREFILL  TRANSFER  BLOCKS   "
        "FIRST STEP",
        "  *  prefill-0       decode-0       72.0 ms +- 25%   20.0 ms +- 10%  10.0 ms  40.0 ms  10.0 ms   0.0 ms   "
        "12.0 ms",
        "     prefill-0       decode-1       102.0 ms +- 25%  20.0 ms +- 10%  10.0 ms  40.0 ms  10.0 ms   30.0 ms  "
        "12.0 ms",
        "",
        "time line, 80.000 ms to the first byte:",
        "  read                    2.000 ms  |#                                        |",
        "  held                    3.000 ms  | #                                       |",
        "  queue                  10.000 ms  |  ######                                 |",
        "  prefill                40.000 ms  |        ####################             |",
        "  transfer exposed       10.000 ms  |                            ####         |",
        "  blocks                  5.000 ms  |                                ###      |",
        "  first step              8.000 ms  |                                   ####  |",
        "  unattributed            2.000 ms  |                                       # |",
        "  beside it: transfer hidden behind prefill 30.000 ms, output after the first byte 380.000 ms",
        "",
        "cache: of 512 prompt tokens (about 500 estimated) prefill had 128 (believed 96), decode had 0 (believed 32) "
        "and was handed 511",
    ]


def test_a_refusal_names_its_time() -> None:
    record = routed(begun(), Rejection("overloaded", "all full", 2.0, 2.5, 0.9))
    record.ended(10.002, first_s=None)
    record.outcome, record.error, record.kept = "rejected", "overloaded", False
    lines = explanation_lines(told(record))
    assert lines[:4] == [
        "r1 /v1/completions: refused: overloaded",
        "  class    chat: TTFT 100 ms, TPOT 50 ms",
        "  rejection after 1 ms: overloaded: all full",
        "  earliest in 2500 ms, confidence 90%",
    ]


def test_the_answer_is_read_back_as_it_was() -> None:
    found = told(streamed(held(begun())))
    assert explanation_of(TypeAdapter(Explanation).dump_json(found)) == found
    with pytest.raises(ValueError, match="request_id"):
        explanation_of(b"{}")


def test_a_request_of_no_decision_has_lines() -> None:
    record = begun()
    record.ended(10.0, first_s=None)
    record.outcome = "client_error"
    lines = explanation_lines(told(record))
    assert lines[0] == "r1 /v1/completions: client_error"
    assert "  decision none was taken" in lines
    assert "time line, 0.000 ms to the end:" in lines


def test_a_stream_that_went_on_elsewhere_says_so() -> None:
    record = begun()
    record.resumed(10.2, 10.75, "decode-1")
    lines = explanation_lines(told(streamed(record)))
    assert "  resumed  at decode-1 after a gap of 550 ms, 200 ms in" in lines
