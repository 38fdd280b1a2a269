"""What is noted of a request as it goes."""

from __future__ import annotations

import pytest

from core.types import ClusterView, Hold, LegFacts, Rejection, Role
from router.record import MAX_HOLDS, Resumed, verdict_of
from tests.support.records import FORECAST, PREFILL_FACTS, ROUTE, SECOND, VIEW, begun, held, routed, shape, streamed
from tests.support.views import worker


def test_holding_is_time_of_its_own() -> None:
    record = streamed(held(begun()))
    assert record.marks.held_s == pytest.approx(0.003)
    assert record.timeline is not None
    assert record.timeline.held_us == pytest.approx(3_000, abs=1)
    assert record.num_holds == 1


def test_a_request_that_ends_while_held_was_held_to_the_end() -> None:
    record = begun()
    record.decided(shape(), VIEW, (), 10.001, Hold("no room", 10.09, 10.05))
    assert verdict_of(record) == "held back"
    record.ended(10.101, first_s=None)
    assert record.timeline is not None
    assert (record.timeline.until, record.timeline.held_us, record.timeline.read_us) == ("end", 100_000, 1_000)


def test_what_the_workers_did_not_measure_is_overhead() -> None:
    record = streamed(routed(begun()))
    assert record.overhead_s == pytest.approx(0.080 - 0.002 - 0.065 - 0.008)
    documents = routed(begun())
    documents.ended(10.2, first_s=None)
    unmeasured = routed(begun())
    unmeasured.ended(10.2, first_s=10.1)
    assert documents.overhead_s is unmeasured.overhead_s is begun().overhead_s is None


def test_holds_are_kept_up_to_a_bound_and_counted_all() -> None:
    record = begun()
    for turn in range(MAX_HOLDS + 5):
        record.decided(shape(), VIEW, (), 10.0 + turn, Hold("no room", 20.0, 10.0))
    assert (len(record.holds), record.num_holds) == (MAX_HOLDS, MAX_HOLDS + 5)
    assert record.marks.held_s == MAX_HOLDS + 4


def test_a_second_try_forgets_what_was_measured_of_the_first() -> None:
    record = routed(begun())
    record.measured(PREFILL_FACTS, None)
    record.failed("worker_lost")
    record.decided(shape(), VIEW, {"decode-0"}, 10.03, SECOND)
    record.submitted(10.04)
    assert (record.attempts, record.tries) == (2, ((ROUTE, "worker_lost"),))
    assert (record.prefill_facts, record.answering_facts) == (None, None)
    assert (record.decode, record.excluded, record.marks.decided_s) == ("decode-1", {"decode-0"}, 10.001)


def test_the_forecast_counts_from_the_latest_decision() -> None:
    record = held(begun())
    assert record.forecast == FORECAST
    assert record.waited_s == pytest.approx(0.004)
    assert record.believed_cached("prefill-0") == 96
    assert record.believed_cached("prefill-9") == record.believed_cached(None) == 0
    assert routed(begun(), Rejection("overloaded", "full")).forecast is None


@pytest.mark.parametrize(("blocks", "exposed_us"), [(16, 13_000), (15, 0)])
def test_a_gap_is_transfer_where_the_decode_worker_had_blocks(blocks: int, exposed_us: int) -> None:
    decode = worker("decode-0", Role.DECODE, kv_blocks_total=100, kv_blocks_used=100 - blocks)  # of 32 tokens
    record = routed(begun(), view=ClusterView((decode,)))
    record.measured(PREFILL_FACTS, LegFacts(512, 0, 511, queued_s=0.063, prefill_s=0.008))
    record.ended(10.5, first_s=10.080)
    assert record.timeline is not None
    assert record.timeline.transfer_exposed_us == exposed_us


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "kept"),
        ({"kept": False, "ttft_s": 0.2}, "missed TTFT"),
        ({"kept": False, "tpot_s": 0.2}, "missed TPOT"),
        ({"kept": False, "ttft_s": 0.2, "tpot_s": 0.2}, "missed TTFT and TPOT"),
        ({"kept": False, "ttft_s": None}, "missed the total time"),
        ({"kept": False, "outcome": "rejected", "error": "overloaded"}, "refused: overloaded"),
        ({"kept": None, "outcome": "client_gone"}, "client_gone"),
        ({"kept": False, "outcome": "worker_lost", "error": "decode-0 is gone"}, "worker_lost: decode-0 is gone"),
    ],
)
def test_the_verdict_is_said_in_words(changes: dict[str, object], verdict: str) -> None:
    record = streamed(routed(begun()))
    for name, value in changes.items():
        setattr(record, name, value)
    assert verdict_of(record) == verdict
    assert verdict_of(routed(begun())) == "running"


def test_each_time_that_a_stream_went_on_is_kept() -> None:
    record = begun()
    record.resumed(10.5, 11.0, "decode-1")
    record.resumed(12.0, 12.25, "prefill-0")
    assert record.resumes == (Resumed(0.5, 0.5, "decode-1"), Resumed(2.0, 0.25, "prefill-0"))
