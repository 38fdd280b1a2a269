"""Each leg of each try has a span of its own, in the trace of its request."""

from __future__ import annotations

from core.types import Leg
from router.trace_context import TraceContext, TracedLeg

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_the_legs_of_two_tries_are_told_apart() -> None:
    context = TraceContext(TRACE_ID, SPAN_ID, "", 0)
    first = context.begin({Leg.PREFILL: "prefill-0", Leg.DECODE: "decode-0"}, 1.0)
    context.end(Leg.PREFILL, 2.0)
    context.end(Leg.DECODE, 3.0)
    second = context.begin({Leg.WHOLE: "decode-1"}, 3.0)
    context.end(Leg.PREFILL, 4.0)  # it has ended
    ids = [one.span_id for one in context.legs]
    assert len({SPAN_ID, *ids}) == 4
    assert context.legs == [
        TracedLeg(Leg.PREFILL, "prefill-0", ids[0], 1.0, 2.0),
        TracedLeg(Leg.DECODE, "decode-0", ids[1], 1.0, 3.0),
        TracedLeg(Leg.WHOLE, "decode-1", ids[2], 3.0),
    ]
    assert first == {
        Leg.PREFILL: f"00-{TRACE_ID}-{ids[0]}-01",
        Leg.DECODE: f"00-{TRACE_ID}-{ids[1]}-01",
    }
    assert second == {Leg.WHOLE: f"00-{TRACE_ID}-{ids[2]}-01"}
    assert context.traceparent == f"00-{TRACE_ID}-{SPAN_ID}-01"
