"""A request's spans: the caller's trace goes on, stages lie within the request and follow one another."""

from __future__ import annotations

import re
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.types import Leg, LegFacts, Rejection
from router.record import RequestRecord
from router.tracing import Tracer, export_request, spans_of
from tests.support.records import ROUTE, begun, held, routed, streamed

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Sink:
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def offer(self, record: RequestRecord) -> None:
        self.records.append(record)


def traced(record: RequestRecord, traceparent: str | None = CALLER) -> list[dict[str, Any]]:
    tracer = Tracer(Sink(), clock=lambda: 10.0)
    tracer.began(record, traceparent)
    return [orjson.loads(orjson.dumps(span)) for span in spans_of(record)]


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}


def test_the_callers_trace_goes_on_with_a_span_of_our_own() -> None:
    record = begun()
    sent = Tracer(Sink(), clock=time.monotonic).began(record, CALLER)
    assert sent is not None
    version, trace_id, span_id, flags = sent.split("-")
    assert (version, trace_id, flags) == ("00", "4bf92f3577b34da6a3ce929d0e0e4736", "01")
    assert span_id != "00f067aa0ba902b7"
    assert spans_of(streamed(routed(record))).__next__()["parentSpanId"] == "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ],
)
def test_what_is_no_trace_begins_a_new_one(traceparent: str | None) -> None:
    record = begun()
    sent = Tracer(Sink(), clock=time.monotonic).began(record, traceparent)
    assert sent is not None
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", sent)
    assert "4bf92f3577b34da6a3ce929d0e0e4736" not in sent
    assert next(spans_of(streamed(routed(record))))["parentSpanId"] == ""


def test_what_the_caller_does_not_sample_is_left_alone() -> None:
    sink, record = Sink(), begun()
    tracer = Tracer(sink, clock=time.monotonic)
    assert tracer.began(record, CALLER[:-2] + "00") is None
    tracer.ended(streamed(routed(record)))
    assert sink.records == []
    assert list(spans_of(record)) == []
    tracer.began(record, CALLER)
    tracer.ended(record)
    assert sink.records == [record]


def test_a_pair_has_a_span_for_each_stage() -> None:
    spans = traced(streamed(held(begun())))
    root, *parts = spans
    assert (root["name"], root["kind"]) == ("text_completion /v1/completions", 2)
    assert [p["name"] for p in parts] == [
        *("held", "queue", "prefill", "kv.transfer", "decode.blocks", "decode.first_step", "decode")
    ]
    told = attributes(root)
    assert told["gen_ai.operation.name"] == "text_completion"
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == ("512", "20")
    assert (told["baton.prefill"], told["baton.decode"], told["baton.verdict"]) == ("prefill-0", "decode-0", "kept")
    assert attributes(parts[2])["baton.worker"] == "prefill-0"
    assert attributes(parts[3])["baton.received_tokens"] == "511"
    assert "status" not in root


@pytest.mark.parametrize("is_pair", [True, False])
def test_stages_hang_below_the_leg_of_the_latest_try(is_pair: bool) -> None:
    record = begun()
    Tracer(Sink(), clock=time.monotonic).began(record, CALLER)
    assert record.trace is not None
    workers = {Leg.DECODE: "decode-0", Leg.PREFILL: "prefill-0"} if is_pair else {Leg.WHOLE: "decode-0"}
    for _ in range(2):
        record.trace.begin(workers, 10.0)
    spans = list(spans_of(streamed(held(record))))
    latest = {span["name"]: span["spanId"] for span in spans if str(span["name"]).startswith("leg.")}
    below = {str(span["name"]): span["parentSpanId"] for span in spans}
    sender, receiver = (latest[f"leg.{leg}"] for leg in (("prefill", "decode") if is_pair else ("whole", "whole")))
    assert (below["queue"], below["prefill"]) == (sender, sender)
    assert (below["kv.transfer"], below["decode.first_step"], below["decode"]) == (receiver, receiver, receiver)
    assert below["held"] == spans[0]["spanId"]


def test_a_failure_is_the_status_of_the_request() -> None:
    record = routed(begun(), Rejection("overloaded", "all full"))
    record.ended(10.002, first_s=None)
    record.outcome, record.error, record.status = "rejected", "all full", 429
    [root] = traced(record)
    assert root["status"] == {"code": 2, "message": "all full"}
    assert attributes(root)["error.type"] == "rejected"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_stages_lie_within_the_request_and_in_order(
    queued_s: float, prefill_s: float, landed_s: float, first_s: float, is_pair: bool
) -> None:
    record = routed(begun(), ROUTE if is_pair else ROUTE._replace(prefill=None))
    record.measured(
        LegFacts(10, 0, 0, queued_s, prefill_s), LegFacts(10, 0, 9, landed_s, prefill_s, landed_s / 2, landed_s)
    )
    record.ended(10.002 + first_s + 0.5, first_s=10.002 + first_s)
    root, *parts = traced(record)
    ends = int(root["startTimeUnixNano"])
    for span in parts:
        begin, end = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
        assert ends - 1000 <= begin <= end  # whole microseconds
        assert end <= int(root["endTimeUnixNano"]) + 1000
        assert span["traceId"] == root["traceId"]
        assert span["parentSpanId"] == root["spanId"]
        ends = end
    assert len({span["spanId"] for span in (root, *parts)}) == 1 + len(parts)


def test_times_are_those_of_the_wall_clock() -> None:
    record = RequestRecord("r1", "", begun().slo, time.monotonic(), path="/v1/completions")
    before_ns = time.time_ns()
    Tracer(Sink(), clock=time.monotonic).began(record, None)
    record.ended(record.marks.arrived_s + 1.0, first_s=None)
    [root] = spans_of(record)
    assert abs(int(str(root["startTimeUnixNano"])) - before_ns) < 1e9
    assert int(str(root["endTimeUnixNano"])) - int(str(root["startTimeUnixNano"])) == pytest.approx(1e9, abs=1e4)


def test_the_export_is_a_request_of_the_protocol() -> None:
    """Parsed by the protocol's own schema where that is installed (Ray brings it)."""
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    json_format = pytest.importorskip("google.protobuf.json_format")
    message = trace_service.ExportTraceServiceRequest()
    record = streamed(held(begun()))
    Tracer(Sink(), clock=lambda: 10.0).began(record, CALLER)
    json_format.Parse(export_request(list(spans_of(record))), message)
    [resource] = message.resource_spans
    [scope] = resource.scope_spans
    assert scope.spans[0].name == "text_completion /v1/completions"
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "baton-router"
