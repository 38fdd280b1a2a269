"""One request's record while it runs: what it is, where it went, when its bytes came, and how to break it off.

Owns the measuring of a request. Must not talk to workers or clients.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from core.router_spec import SLOTarget
from core.types import LegFacts
from router.body import BodyFacts
from router.exchange import Exchange
from router.limits import FREE
from router.record import RequestRecord
from router.routes import Operation
from router.slo_headers import RequestSLO
from router.tenants import ANYBODY
from router.transcript import Transcript

_USAGE_KEY: Final = b'"completion_tokens":'
_UNREAD: Final = BodyFacts(0)
_RESUMABLE: Final = (None, "echo")  # of what keeps a request off handed-over KV, see router.body


class Timing(NamedTuple):
    """What a client felt; None where it cannot be told."""

    e2e_s: float
    ttft_s: float | None
    tpot_s: float | None
    output_tokens: int

    def meets(self, target: SLOTarget) -> bool:
        """Judge against both targets of a class.

        A client that does not stream sees all tokens at the end, so it is due the time a stream of them may take.
        """
        if self.ttft_s is None:
            return self.e2e_s <= target.ttft_s + target.tpot_s * max(0, self.output_tokens - 1)
        return self.ttft_s <= target.ttft_s and (self.tpot_s is None or self.tpot_s <= target.tpot_s)


class Life:
    """A request from the arrival of its head to the last byte of its answer; one task mutates it."""

    __slots__ = (
        "arrived_s",
        "asked",
        "attempts",
        "body_bytes",
        "cause",
        "chunk_s",
        "decode",
        "decode_facts",
        "events",
        "exchange",
        "excluded",
        "facts",
        "first_s",
        "grant",
        "has_place",
        "is_breakable",
        "is_explained",
        "is_read",
        "is_reserved",
        "num_resumed",
        "operation",
        "output_tokens",
        "prefill",
        "prefill_facts",
        "reason",
        "record",
        "reservation",
        "slo",
        "status",
        "task",
        "tenant",
        "transcript",
    )

    def __init__(self, exchange: Exchange, operation: Operation, slo: SLOTarget, arrived_s: float) -> None:
        self.exchange = exchange
        self.operation = operation
        self.slo = slo
        self.tenant = ANYBODY
        self.asked = RequestSLO(slo.name)
        self.grant = FREE  # the tenant's leave to run
        self.record = RequestRecord("", "", slo, arrived_s, path=operation.path)
        self.is_reserved = False  # it was promised this time
        self.is_explained = False  # its client asks for the explaining headers
        self.is_read = False  # its body is
        self.facts = _UNREAD
        self.arrived_s = arrived_s
        self.first_s: float | None = None  # first byte of a stream's body
        self.chunk_s = arrived_s  # latest bytes of the body
        self.body_bytes = 0
        self.events = 0  # of a stream
        self.output_tokens = 0  # of an answer that is not a stream
        self.status = 0
        self.prefill: str | None = None  # of the latest attempt
        self.decode: str | None = None
        self.reason = ""
        self.attempts = 0
        # All and only the workers that failed this request, each with the session in which it did.
        self.excluded: dict[str, object] = {}
        self.num_resumed = 0  # times that its stream went on at another worker
        self.transcript: Transcript | None = None  # of a stream that could go on at another worker
        self.reservation: str | None = None  # token of a time that was promised when it was refused
        self.decode_facts: LegFacts | None = None  # of the latest attempt, as its workers measured them
        self.prefill_facts: LegFacts | None = None
        self.task: asyncio.Task[None] | None = None  # that serves it
        self.has_place = False  # it counts against the limit on concurrent requests
        self.is_breakable = False  # the request may be broken off
        self.cause: Exception | None = None  # why it was broken off

    def break_off(self, cause: Exception) -> None:
        """Stop whatever the request waits for; the first cause counts."""
        if self.is_breakable and self.task is not None and self.cause is None and not self.exchange.response_complete:
            self.cause = cause
            self.task.cancel()

    def slack_s(self, now_s: float) -> float:
        """Tell how long the prompt may still wait, by what was predicted of the rest; may be negative."""
        forecast = self.record.forecast
        own_s = 0.0 if forecast is None else forecast.ttft_s - forecast.queue_s
        return self.arrived_s + self.slo.ttft_s - own_s - now_s

    def chunk(self, data: bytes, now_s: float) -> float | None:
        """Note bytes of a stream as they pass; return the time since the bytes before, None for the first."""
        gap_s = None if self.first_s is None else now_s - self.chunk_s
        if self.first_s is None:
            self.first_s = now_s
        self.chunk_s = now_s
        self.body_bytes += len(data)
        self.events += data.count(b"\n\n")
        return gap_s

    def resumed(self, now_s: float) -> None:
        """Note that another worker has made what the client has: from here on the stream goes on."""
        self.num_resumed += 1
        self.record.resumed(self.chunk_s, now_s, self.decode or "")

    def whole_body(self, body: bytes, now_s: float) -> None:
        """Note an answer that came as one document."""
        self.chunk_s = now_s
        self.body_bytes = len(body)
        at = body.rfind(_USAGE_KEY)
        if at >= 0:
            digits = body[at + len(_USAGE_KEY) : at + len(_USAGE_KEY) + 12].split(b",", 1)[0].strip(b" }\n")
            self.output_tokens = int(digits) if digits.isdigit() else 0

    def transcribe(self) -> None:
        """Begin to note what the client is sent, if that can be made again elsewhere."""
        facts = self.facts
        if facts.stream and self.operation.resumes and facts.whole_only in _RESUMABLE:
            self.transcript = Transcript(with_logprobs=facts.logprobs)

    @property
    def leg(self) -> str:
        """How the request ran: "pair", "whole", or "none" when it never reached a worker."""
        if self.decode is None:
            return "none"
        return "whole" if self.prefill is None else "pair"

    def timing(self) -> Timing:
        """Sum up; tokens of a stream are its events less those known to hold none."""
        e2e_s = self.chunk_s - self.arrived_s
        if self.first_s is None:
            return Timing(e2e_s, None, None, self.output_tokens)
        silent = 1 + self.facts.include_usage + self.operation.opening_events  # 1: [DONE]
        tokens = max(1, self.events - silent)
        tpot_s = (self.chunk_s - self.first_s) / (tokens - 1) if tokens > 1 else None
        return Timing(e2e_s, self.first_s - self.arrived_s, tpot_s, tokens)
