"""Requests as the router's notes have them, and a policy that predicts by a table."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from core.router_spec import SLOTarget
from core.types import ClusterView, Decision, Forecast, Hold, LegFacts, RequestShape, Role, Route
from router.body import BodyFacts
from router.exchange import Exchange
from router.life import Life
from router.record import RequestRecord
from router.routes import OPERATIONS
from tests.support.views import worker

SLO = SLOTarget("chat", ttft_s=0.1, tpot_s=0.05)
VIEW = ClusterView(
    (worker("decode-0", Role.DECODE), worker("decode-1", Role.DECODE), worker("prefill-0", Role.PREFILL))
)
FORECAST = Forecast(0.010, 0.040, 0.010, 0.0, 0.012, 0.02, 0.25, 0.1, 0.054, 0.09, 0.018, 0.022)
ROUTE = Route("decode-0", "prefill-0", "least predicted TTFT", FORECAST)
SECOND = Route(
    "decode-1",
    "prefill-0",
    "least predicted TTFT",
    FORECAST._replace(blocks_s=0.030, ttft_low_s=0.0765, ttft_high_s=0.1275),
)
PREFILL_FACTS = LegFacts(512, cached_tokens=128, queued_s=0.010, prefill_s=0.040)
DECODE_FACTS = LegFacts(512, 0, 511, queued_s=0.065, prefill_s=0.008, blocks_s=0.020, landed_s=0.060)


@dataclass
class TablePolicy:
    """Says what it is told to, and remembers what it was asked."""

    routes: tuple[Route, ...] = (ROUTE, SECOND)
    asked: list[tuple[RequestShape, ClusterView, float, int]] = field(default_factory=list)

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        return self.routes[0]

    def options(self, request: RequestShape, cluster: ClusterView, now_s: float, *, limit: int) -> tuple[Route, ...]:
        self.asked.append((request, cluster, now_s, limit))
        return self.routes[:limit]


def shape(request_id: str = "r1", **changes: object) -> RequestShape:
    made = RequestShape(request_id, 500, 64, "chat", cached=(("decode-0", 32), ("prefill-0", 96)))
    return made._replace(**changes)  # type: ignore[arg-type]


def begun(request_id: str = "r1", *, tenant: str = "", slo: SLOTarget = SLO) -> RequestRecord:
    """A request that arrived at 10 s."""
    return RequestRecord(request_id, tenant, slo, 10.0, path="/v1/completions")


def routed(record: RequestRecord, decision: Decision = ROUTE, *, view: ClusterView = VIEW) -> RequestRecord:
    """Decide a request 1 ms after its arrival and submit it 1 ms later if it has a route."""
    record.decided(shape(record.request_id, tenant=record.tenant), view, (), 10.001, decision)
    if isinstance(decision, Route):
        record.submitted(10.002)
    return record


def held(record: RequestRecord) -> RequestRecord:
    """Hold a request back for 3 ms, then route it."""
    record.decided(shape(record.request_id), VIEW, (), 10.001, Hold("no room", 10.090, 10.05, FORECAST))
    record.decided(shape(record.request_id, waited_s=0.004), VIEW, (), 10.004, ROUTE)
    record.submitted(10.005)
    return record


def streamed(record: RequestRecord, *, tokens: int = 20) -> RequestRecord:
    """Answer a routed request: first byte 80 ms after its arrival, 20 ms for each further token."""
    record.measured(PREFILL_FACTS, DECODE_FACTS)
    last_s = 10.080 + 0.02 * (tokens - 1)
    record.ended(last_s, first_s=10.080)
    record.status, record.outcome, record.kept = 200, "ok", True
    record.ttft_s, record.tpot_s, record.e2e_s = 0.08, 0.02, last_s - 10.0
    record.output_tokens = tokens
    return record


class Nowhere:
    """A connection on which nothing is ever written."""

    transport: asyncio.Transport

    def default_headers(self) -> bytes:
        raise NotImplementedError

    def on_response_complete(self) -> None:
        raise NotImplementedError


def life(path: str = "/v1/completions") -> Life:
    """A request that arrived at 10 s and has no connection."""
    exchange = Exchange(Nowhere(), method="POST", path=path)
    exchange.request_id = "r1"
    made = Life(exchange, OPERATIONS[path], SLO, 10.0)
    made.facts = BodyFacts(500, stream=True)
    return made
