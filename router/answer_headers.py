"""The `x-baton-*` headers of an answer, and the last comment of a stream: for clients that ask by `x-baton-explain: 1`.

Owns their names and values, which clients read. Pure. Must not send anything.
"""

from __future__ import annotations

from typing import Final

import orjson

from core.types import Route
from router.errors import Headers
from router.life import Timing
from router.record import RequestRecord

ASKED_BY: Final = b"x-baton-explain"


def is_asked(value: str | None) -> bool:
    """Tell whether the header's value asks for an explanation."""
    return value is not None and value.strip().lower() in ("1", "true")


def start_headers(record: RequestRecord) -> Headers:
    """Tell what is known when the answer begins: the pair, why, and what is predicted from arrival on."""
    route = record.decision
    if not isinstance(route, Route):
        return []
    headers: Headers = [(b"x-baton-decode", _value(route.decode)), (b"x-baton-reason", _value(route.reason))]
    if route.prefill is not None:
        headers.append((b"x-baton-prefill", _value(route.prefill)))
    if route.forecast is not None:
        headers.append((b"x-baton-predicted-ttft-ms", _ms(record.predicted_ttft_s)))
        headers.append((b"x-baton-predicted-tpot-ms", _ms(route.forecast.tpot_s)))
    return headers


def document_headers(record: RequestRecord, timing: Timing) -> Headers:
    """Tell what came of an answer that is complete before its head is sent, beside what `start_headers` tells."""
    headers = [*start_headers(record), (b"x-baton-e2e-ms", _ms(timing.e2e_s))]
    facts, submitted_s = record.answering_facts, record.marks.submitted_s
    if facts is not None and facts.prefill_s and submitted_s is not None:
        before_s = submitted_s - record.marks.arrived_s
        headers.append((b"x-baton-ttft-ms", _ms(min(timing.e2e_s, before_s + facts.queued_s + facts.prefill_s))))
    headers.append((b"x-baton-verdict", b"kept" if timing.meets(record.slo) else b"missed"))
    return headers


def stream_comment(record: RequestRecord, timing: Timing) -> bytes:
    """Write the comment that ends a stream; readers of server-sent events skip it, as the standard has it."""
    told: dict[str, str | float | None] = {
        name.decode().removeprefix("x-baton-").replace("-", "_"): value.decode("latin-1")
        for name, value in start_headers(record)
        if not name.endswith(b"-ms")
    }
    forecast = record.forecast
    if forecast is not None:
        told["predicted_ttft_ms"] = _rounded(record.predicted_ttft_s)
        told["predicted_tpot_ms"] = _rounded(forecast.tpot_s)
    told["ttft_ms"] = None if timing.ttft_s is None else _rounded(timing.ttft_s)
    told["tpot_ms"] = None if timing.tpot_s is None else _rounded(timing.tpot_s)
    told["e2e_ms"] = _rounded(timing.e2e_s)
    told["verdict"] = "kept" if timing.meets(record.slo) else "missed"
    return b": baton " + orjson.dumps(told) + b"\n\n"


def _value(text: str) -> bytes:
    """Make text that may stand in a header: one line of printable latin-1."""
    return "".join(c if c.isprintable() else " " for c in text).encode("latin-1", "replace")


def _ms(seconds: float) -> bytes:
    return b"%.3f" % (seconds * 1000)


def _rounded(seconds: float) -> float:
    return round(seconds * 1000, 3)
