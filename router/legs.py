"""The legs of one try: submitted to the workers of a route, relayed to the client, aborted when they are not needed.

Owns every rule about a single try. Must not choose routes, count tries, or answer errors.
"""

from __future__ import annotations

import asyncio
import secrets
from http import HTTPStatus
from typing import Final

from cluster.pool import WorkerPool
from cluster.reply import Reply
from cluster.session_client import WorkerSession
from core.engine import HttpCall
from core.errors import BatonError, EngineFailed, WorkerLost
from core.types import Handover, Leg, Route
from router.errors import Headers, in_one_shape
from router.life import Life
from router.metrics import RouterMetrics
from router.tasks import Helpers

WorkerHeaders = tuple[tuple[str, str], ...]

# Hop-by-hop (RFC 9110, 7.6.1), or set anew on this side.
_DROPPED: Final = frozenset(
    (
        "connection",
        "content-length",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    )
)


class Legs:
    """Runs tries; holds nothing between them."""

    def __init__(self, *, pool: WorkerPool, lease_s: float, helpers: Helpers, metrics: RouterMetrics) -> None:
        self._pool = pool
        self._lease_s = lease_s
        self._helpers = helpers
        self._metrics = metrics

    async def run(self, life: Life, call: HttpCall, route: Route) -> None:
        """Answer the client by one route; on return and on every error no leg is left running.

        Raises whatever the leg that answers failed with, WorkerLost when its worker is not connected.
        """
        decode = self._pool.session(route.decode)
        if decode is None:
            raise WorkerLost(f"{route.decode} is not connected")
        # A prefill worker lost since the policy looked is no reason to fail: decode can do without.
        prefill = None if route.prefill is None else self._pool.session(route.prefill)
        if prefill is None:
            life.prefill = None
            await self._run_whole(life, call, decode)
        else:
            await self._run_pair(life, call, prefill, decode)

    async def _run_whole(self, life: Life, call: HttpCall, worker: WorkerSession) -> None:
        reply = worker.submit(Leg.WHOLE, call, None, prompt_tokens=life.facts.prompt_tokens)
        try:
            await self._relay(life, reply)
        finally:
            reply.abort()

    async def _run_pair(self, life: Life, call: HttpCall, prefill: WorkerSession, decode: WorkerSession) -> None:
        handover = Handover(secrets.token_hex(16), decode.hello.kv_address, self._lease_s)
        reply = decode.submit(Leg.DECODE, call, handover, prompt_tokens=life.facts.prompt_tokens)
        helper = self._helpers.spawn(
            self._run_prefill(prefill, decode, call, handover, prompt_tokens=life.facts.prompt_tokens)
        )
        answered = False
        try:
            await self._relay(life, reply)
            answered = life.status == HTTPStatus.OK
        finally:
            reply.abort()
            helper.cancel()
            if not answered:
                # The prefill leg may be done and its KV wait for a request that never came to be scheduled.
                decode.cancel_transfer(handover.transfer_id, "the decode leg ended early")

    async def _run_prefill(
        self,
        prefill: WorkerSession,
        decode: WorkerSession,
        call: HttpCall,
        handover: Handover,
        *,
        prompt_tokens: int,
    ) -> None:
        """Run the prefill leg; when it fails, tell the decode worker at once to compute the prompt itself."""
        outcome, reason = "cancelled", ""
        reply: Reply | None = None
        try:
            reply = prefill.submit(Leg.PREFILL, call, handover, prompt_tokens=prompt_tokens)
            status, _ = await reply.head()
            while await reply.read():
                pass
            outcome = "ok" if status == HTTPStatus.OK else "refused"
            reason = f"the prefill leg was answered {status}"
        except BatonError as exc:
            outcome, reason = exc.name, f"{exc.name}: {exc}"
        finally:
            if reply is not None:
                reply.abort()
            self._metrics.handed_over(outcome)
        if outcome != "ok":
            decode.cancel_transfer(handover.transfer_id, reason)

    async def _relay(self, life: Life, reply: Reply) -> None:
        """Pass a reply on: a stream as its bytes come, anything else whole."""
        exchange = life.exchange
        status, worker_headers = await reply.head()
        headers = _response_headers(worker_headers)
        if not _is_stream(worker_headers):
            await self._relay_whole(life, reply, status, headers)
            return
        if not exchange.started:
            life.status = status
            headers.append((b"x-accel-buffering", b"no"))
            await exchange.start(status, headers)
        now_s = asyncio.get_running_loop().time
        while data := await reply.read():
            gap_s = life.chunk(data, now_s())
            if gap_s is not None:
                self._metrics.gap(gap_s)
            await exchange.write(data)
        await exchange.finish()

    async def _relay_whole(self, life: Life, reply: Reply, status: int, headers: Headers) -> None:
        """Collect a document first: a worker lost in the middle of it must not be the client's concern."""
        parts = []
        while data := await reply.read():
            parts.append(data)
        if life.exchange.started:  # a stream was promised by a worker that died before its first event
            raise EngineFailed(f"the worker that took the request over answered {status}")
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if status >= HTTPStatus.BAD_REQUEST and (shaped := in_one_shape(status, body)) is not None:
            headers = [(name, value) for name, value in headers if name != b"content-type"]
            headers.append((b"content-type", b"application/json"))
            body = shaped
        life.status = status
        life.whole_body(body, asyncio.get_running_loop().time())
        await life.exchange.respond(status, headers, body)


def _is_stream(headers: WorkerHeaders) -> bool:
    return any(n.lower() == "content-type" and v.startswith("text/event-stream") for n, v in headers)


def _response_headers(headers: WorkerHeaders) -> Headers:
    return [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in headers
        if name.lower() not in _DROPPED
    ]
