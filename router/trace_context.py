"""Where the spans of one traced request hang, and the legs that carry its trace to workers.

Owns their ids and the header that a worker gets (W3C Trace Context, level 1). Only traced requests have one. Must not
know how spans are written or sent.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from core.types import Leg


@dataclass(slots=True)
class TracedLeg:
    """One leg of one try: what its worker reports hangs below it."""

    leg: Leg
    worker_id: str
    span_id: str  # 16 hexadecimal digits
    begin_s: float  # monotonic
    end_s: float | None = None  # None: it runs


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The request's own span, and one for each leg."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # of the request's own span, 16
    parent_id: str  # of the caller's; empty: there is none
    wall_offset_ns: int  # from the monotonic clock to Unix time
    legs: list[TracedLeg] = field(default_factory=list)  # of all tries, in the order in which they began

    @property
    def traceparent(self) -> str:
        """The header of whoever hangs spans below the request's own."""
        return self._below(self.span_id)

    def begin(self, workers: Mapping[Leg, str], now_s: float) -> dict[Leg, str]:
        """Begin the legs of one try on these workers; return the header that each leg is to carry."""
        begun = [TracedLeg(leg, worker_id, secrets.token_hex(8), now_s) for leg, worker_id in workers.items()]
        self.legs.extend(begun)
        return {one.leg: self._below(one.span_id) for one in begun}

    def end(self, leg: Leg, now_s: float) -> None:
        """Note that a leg has ended; without effect on one that had before."""
        for one in self.legs:
            if one.leg is leg and one.end_s is None:
                one.end_s = now_s

    def _below(self, span_id: str) -> str:
        return f"00-{self.trace_id}-{span_id}-01"
