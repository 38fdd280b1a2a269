"""OpenTelemetry traces of requests: the incoming trace continued, one span for each stage, sent by OTLP over HTTP.

Owns which traces are joined, the spans of a request and their JSON form (OTLP 1.x, JSON Protobuf encoding). Spans are
made of the record when the request has ended, in the exporter's thread. Must not delay any request, nor know who sends.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import orjson

from core.types import Leg, Route
from router import VERSION
from router.record import RequestRecord, verdict_of
from router.timeline import STAGES
from router.trace_context import TraceContext

_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_SAMPLED: Final = 1
_INTERNAL: Final = 1  # SpanKind
_SERVER: Final = 2
_CLIENT: Final = 3
_ERROR: Final = 2  # StatusCode
# Stages in the order in which they follow one another, by the span that shows them; time of no span is the request's.
_SPAN_OF_STAGE: Final = {
    "held": "held",
    "queue": "queue",
    "prefill": "prefill",
    "transfer_exposed": "kv.transfer",
    "blocks": "decode.blocks",
    "first_step": "decode.first_step",
}
_PREFILL_STAGES: Final = frozenset({"queue", "prefill"})
_OPERATIONS: Final = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
Value = str | int | float | bool


class SpanSink(Protocol):
    """Takes requests whose spans are to be sent; never blocks."""

    def offer(self, record: RequestRecord) -> None:
        """Take one, or drop and count it."""
        ...


class Tracer:
    """Begins and ends traces; requests that their caller does not sample are left alone."""

    def __init__(self, sink: SpanSink, *, clock: Callable[[], float]) -> None:
        """Send spans to `sink`; `clock` is that of the marks."""
        self._sink = sink
        self._clock = clock

    def began(self, record: RequestRecord, traceparent: str | None) -> str | None:
        """Join the caller's trace, or begin one; return what to send on, None to leave the headers as they are."""
        found = None if traceparent is None else _TRACEPARENT.match(traceparent)
        trace_id, parent_id = secrets.token_hex(16), ""
        if found is not None and set(found[1]) != {"0"} and set(found[2]) != {"0"}:
            if not int(found[3], 16) & _SAMPLED:
                return None
            trace_id, parent_id = found[1], found[2]
        offset_ns = time.time_ns() - int(self._clock() * 1e9)
        context = TraceContext(trace_id, secrets.token_hex(8), parent_id, offset_ns)
        record.trace = context
        return context.traceparent

    def ended(self, record: RequestRecord) -> None:
        """Send the spans of a request, if it is traced."""
        if record.trace is not None:
            self._sink.offer(record)


def spans_of(record: RequestRecord) -> Iterator[dict[str, object]]:
    """Write the spans of an ended request: its own, one for each leg, for each stage that took time, for the output."""
    context, line, marks = record.trace, record.timeline, record.marks
    if context is None or line is None or marks.ended_s is None:
        return

    def at(seconds: float) -> int:
        return int(seconds * 1e9) + context.wall_offset_ns

    operation = _OPERATIONS.get(record.path, "generate")
    failed = record.outcome not in ("ok", "client_gone")
    yield _span(
        context, f"{operation} {record.path}", at(marks.arrived_s), at(max(marks.ended_s, marks.arrived_s)),
        span_id=context.span_id, parent_id=context.parent_id, kind=_SERVER, error=record.error if failed else None,
        attributes=_request_attributes(record, operation),
    )  # fmt: skip
    for leg in context.legs:
        told: dict[str, Value] = {"baton.worker": leg.worker_id}
        end_s = marks.ended_s if leg.end_s is None else min(leg.end_s, marks.ended_s)
        begin_ns = at(leg.begin_s)
        yield _span(
            context, f"leg.{leg.leg}", begin_ns, max(begin_ns, at(end_s)),
            span_id=leg.span_id, kind=_CLIENT, attributes=told,
        )  # fmt: skip
    cursor_us = 0
    for stage, us in zip(STAGES, line.stages_us, strict=True):
        name = _SPAN_OF_STAGE.get(stage)
        if name is not None and us:
            begin = at(marks.arrived_s) + cursor_us * 1000
            told = _stage_attributes(record, name)
            yield _span(context, name, begin, begin + us * 1000, parent_id=_above(context, name), attributes=told)
        cursor_us += us
    if marks.first_s is not None:
        tokens: dict[str, Value] = {"gen_ai.usage.output_tokens": record.output_tokens}
        ended_ns = at(max(marks.first_s, marks.ended_s))
        above = _above(context, "decode")
        yield _span(context, "decode", at(marks.first_s), ended_ns, parent_id=above, attributes=tokens)


def _above(context: TraceContext, name: str) -> str | None:
    """Find the span of the leg, in the latest try, that a stage was a part of; None: it is the request's own."""
    kinds = {Leg.WHOLE, Leg.PREFILL if name in _PREFILL_STAGES else Leg.DECODE}
    return None if name == "held" else next((leg.span_id for leg in reversed(context.legs) if leg.leg in kinds), None)


def export_request(spans: list[dict[str, object]], *, service: str = "baton-router") -> bytes:
    """Write an ExportTraceServiceRequest in JSON."""
    resource = {"attributes": _attributes({"service.name": service, "service.version": VERSION})}
    scope = {"name": "baton.router", "version": VERSION}
    return orjson.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": spans}]}]})


def _request_attributes(record: RequestRecord, operation: str) -> dict[str, Value]:
    """Describe the request by the gen_ai conventions where they have a name for it, else by our own."""
    found: dict[str, Value] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "baton",
        "gen_ai.usage.output_tokens": record.output_tokens,
        "gen_ai.response.id": record.request_id,
        "http.response.status_code": record.status,
        "baton.slo_class": record.slo.name,
        "baton.outcome": record.outcome,
        "baton.verdict": verdict_of(record),
        "baton.attempts": record.attempts,
    }
    facts, shape, forecast = record.answering_facts or record.prefill_facts, record.shape, record.forecast
    if facts is not None and facts.prompt_tokens:
        found["gen_ai.usage.input_tokens"] = facts.prompt_tokens
        found["gen_ai.usage.cache_read.input_tokens"] = (record.prefill_facts or facts).cached_tokens
    if shape is not None and shape.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = shape.max_tokens
    if record.actual_ttft_s is not None:
        found["gen_ai.server.time_to_first_token"] = record.actual_ttft_s
    if record.tpot_s is not None:
        found["gen_ai.server.time_per_output_token"] = record.tpot_s
    if isinstance(record.decision, Route):
        found |= {"baton.decode": record.decision.decode, "baton.reason": record.decision.reason}
        if record.decision.prefill is not None:
            found["baton.prefill"] = record.decision.prefill
    if forecast is not None:
        found |= {"baton.predicted_ttft": record.predicted_ttft_s, "baton.predicted_tpot": forecast.tpot_s}
    if record.outcome not in ("ok", "client_gone"):
        found["error.type"] = record.outcome
    return found


def _stage_attributes(record: RequestRecord, name: str) -> dict[str, Value]:
    """Name the worker of a stage, and what it did."""
    found: dict[str, Value] = {}
    worker = record.decode if name.startswith("decode") or record.prefill is None else record.prefill
    if worker is not None and name != "held":
        found["baton.worker"] = worker
    sender, receiver = record.prefill_facts or record.answering_facts, record.answering_facts
    if name == "prefill" and sender is not None:
        found["gen_ai.usage.input_tokens"] = sender.prompt_tokens
        found["gen_ai.usage.cache_read.input_tokens"] = sender.cached_tokens
    if name == "kv.transfer" and receiver is not None:
        found["baton.received_tokens"] = receiver.received_tokens
        hidden_us = None if record.timeline is None else record.timeline.transfer_hidden_us
        if hidden_us is not None:
            found["baton.hidden"] = hidden_us / 1e6
    return found


def _span(
    context: TraceContext,
    name: str,
    begin_ns: int,
    end_ns: int,
    *,
    attributes: dict[str, Value],
    span_id: str | None = None,
    parent_id: str | None = None,
    kind: int = _INTERNAL,
    error: str | None = None,
) -> dict[str, object]:
    span: dict[str, object] = {
        "traceId": context.trace_id,
        "spanId": span_id or secrets.token_hex(8),
        "parentSpanId": context.span_id if parent_id is None else parent_id,
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(begin_ns),
        "endTimeUnixNano": str(end_ns),
        "attributes": _attributes(attributes),
    }
    if error is not None:
        span["status"] = {"code": _ERROR, "message": error}
    return span


def _attributes(values: dict[str, Value]) -> list[dict[str, object]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Value) -> dict[str, object]:
    """Write an AnyValue; 64-bit integers are strings in this encoding."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}
