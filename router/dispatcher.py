"""The life of a request, top to bottom: admitted, read, placed, tried, tried elsewhere, answered, accounted for.

Owns who is let in, the number of tries, and the answer when all is lost. Must not know how a place is found
(router.placing), how a try is made up of legs, or how workers are found.
"""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from time import monotonic as _now_s
from typing import Final

from cluster.pool import WorkerPool
from core.bounded import within
from core.engine import HttpCall
from core.errors import (
    BatonError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    RequestRejected,
    WorkerError,
)
from core.policy.breaker import Breakers
from core.router_spec import RouterSpec
from core.types import Route
from router.answer_headers import ASKED_BY, is_asked
from router.errors import answer, stream_event
from router.exchange import FORWARDED, ClientGone, Exchange, header_block
from router.ids import SecretIds
from router.knowledge import RESERVATION_HEADER, Knowledge
from router.legs import Legs
from router.life import Life
from router.limits import Limits
from router.observer import Observer
from router.placing import Placer
from router.resuming import Resumer
from router.routes import Operation
from router.slo_headers import SLOHeaders
from router.tenants import Tenants

MAX_ATTEMPTS: Final = 3
# How long a client may go on sending a body that was refused.
LAST_WORDS_S: Final = 5.0
_CLIENT_GONE: Final = ClientGone()
_CLOCK_GRAIN_S: Final = 0.002  # a timer may ring as much too early: event loops count in milliseconds
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:/+=@-]{1,128}\Z")

log = logging.getLogger(__name__)


class Dispatcher:
    """Serves requests, each in a task of its own."""

    def __init__(
        self,
        *,
        pool: WorkerPool,
        spec: RouterSpec,
        tenants: Tenants,
        placer: Placer,
        knowledge: Knowledge,
        observer: Observer,
        breakers: Breakers,
    ) -> None:
        self._spec = spec
        self._tenants = tenants
        self._limits = Limits()
        self._slo = SLOHeaders(spec.slo_classes, spec.slo_default)
        self._placer = placer
        self._knowledge = knowledge
        self._observer = observer
        self._breakers = breakers
        self._ids = SecretIds()
        self._legs = Legs(pool=pool, lease_s=spec.lease_s, ids=self._ids, observer=observer, breakers=breakers)
        self._pool = pool
        self._resumer = Resumer(pool=pool, placer=placer, legs=self._legs, metrics=observer.metrics, breakers=breakers)
        self._default_target = next(c for c in spec.slo_classes if c.name == spec.slo_default)
        self._lives: dict[Life, None] = {}  # all and only the requests whose answer is not complete, oldest first
        self._num_placed = 0  # of those, the ones whose body is read
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # that serves; finding it out takes a system call
        self._idle = asyncio.Event()  # set while there are none
        self._idle.set()

    @property
    def num_inflight(self) -> int:
        """Count the requests being served."""
        return len(self._lives)

    def begin(self, exchange: Exchange, operation: Operation, worker_id: str | None = None) -> None:
        """Serve one request in a task of its own, whatever happens; `worker_id` binds it to that worker."""
        life = Life(exchange, operation, self._default_target, _now_s())
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        life.task = self._loop.create_task(self._serve(life, worker_id))
        exchange.on_gone = partial(life.break_off, _CLIENT_GONE)
        self._lives[life] = None
        self._idle.clear()
        if self._deadline_timer is None:
            self._wait_for_deadline(life)

    async def _serve(self, life: Life, worker_id: str | None) -> None:
        failure: Exception | None = _CLIENT_GONE  # what a cancelled task leaves behind
        try:
            failure = await self._attend(life, worker_id)
            if isinstance(failure, BatonError):
                await self._tell(life, failure)
        finally:
            life.exchange.on_gone = None
            del self._lives[life]
            self._num_placed -= life.has_place
            if not self._lives:
                self._idle.set()
            self._account(life, failure)

    def _account(self, life: Life, failure: Exception | None) -> None:
        """Let everyone learn from a request whose answer is out."""
        life.record.measured(life.prefill_facts, life.decode_facts)
        self._observer.finished(life, failure, life.record if life.record.request_id else None)
        self._knowledge.ended(life)

    async def wait_idle(self) -> None:
        """Wait until no request is being served."""
        await self._idle.wait()

    def break_off_all(self, cause: BatonError) -> None:
        """End every running request with an error; each answers it in its own task."""
        for life in tuple(self._lives):
            life.break_off(cause)

    def close(self) -> None:
        """Stop the timer; call it when no request runs."""
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()

    def _wait_for_deadline(self, oldest: Life) -> None:
        """Set the one timer that watches every request: all have the same time, so the oldest runs out first."""
        left_s = oldest.arrived_s + self._spec.request_timeout_s - _now_s()
        self._deadline_timer = asyncio.get_running_loop().call_later(left_s, self._end_overdue)

    def _end_overdue(self) -> None:
        self._deadline_timer = None
        limit_s = self._spec.request_timeout_s
        overdue_before_s = _now_s() - limit_s + _CLOCK_GRAIN_S
        for life in tuple(self._lives):
            if life.arrived_s > overdue_before_s:
                self._wait_for_deadline(life)
                return
            life.break_off(DeadlineExceeded(f"the request was not done within {limit_s:g} s"))

    async def _attend(self, life: Life, worker_id: str | None) -> Exception | None:
        """Serve until answered; return why that could not be done."""
        life.is_breakable = True
        try:
            self._admit(life)
            body = await life.exchange.read_body(self._spec.max_body_bytes)
            self._take_place(life)
            self._read(life, body)
            await self._answer(life, _call(life, body, self._ids.new()), worker_id)
            return None
        except asyncio.CancelledError:
            if life.cause is None or life.task is None:
                raise
            life.task.uncancel()
            return life.cause
        except (BatonError, ClientGone) as exc:
            return exc
        except Exception as exc:  # the boundary of the request's task: its client must still be answered
            return self._internal_error(life, exc)
        finally:
            life.is_breakable = False

    def _admit(self, life: Life) -> None:
        exchange = life.exchange
        given = exchange.header(b"x-request-id")
        exchange.request_id = given if given and _REQUEST_ID.match(given) else self._ids.new()
        if given is not None and given != exchange.request_id:
            allowed = "x-request-id must be 1 to 128 letters, digits or _.:/+=@-"
            raise InvalidRequest(allowed, param="x-request-id")
        if self._tenants.are_known:
            life.tenant = self._tenants.authenticate(exchange.header(b"authorization"), exchange.header(b"x-api-key"))
        self._check_room()
        if not life.operation.generates:
            return
        headers, record = exchange.headers, life.record
        life.asked = self._slo.read(headers, life.tenant)
        record.slo = life.slo = self._slo.target(life.asked)
        record.request_id, record.tenant = exchange.request_id, life.tenant.name
        life.is_explained = ASKED_BY in headers and is_asked(exchange.header(ASKED_BY))
        traceparent = self._observer.began(record, exchange.header(b"traceparent"))
        if traceparent is not None:
            headers[b"traceparent"] = traceparent.encode()
        life.grant = self._limits.admit(life.tenant, life.arrived_s)

    def _read(self, life: Life, body: bytes) -> None:
        """Read what routing needs of the body, and take the prompt out of the tenant's limits."""
        life.facts = life.operation.read(body, life.tenant.name, self._knowledge.estimate.tokens)
        if not life.operation.generates:
            return
        life.grant.charge(life.facts.prompt_tokens, _now_s())
        if (token := life.exchange.header(RESERVATION_HEADER)) is not None:
            life.is_reserved = self._knowledge.redeem(token, life)
        self._knowledge.arrived(life)
        life.is_read = True
        life.transcribe()

    def _check_room(self) -> None:
        limit = self._spec.max_concurrent_requests
        if self._num_placed >= limit:
            raise Overloaded(f"{limit} requests are running, the limit router.max_concurrent_requests")

    def _take_place(self, life: Life) -> None:
        """Count a request once its body is here, so that bodies that never end keep nobody out."""
        self._check_room()
        self._num_placed += 1
        life.has_place = True

    async def _answer(self, life: Life, call: HttpCall, worker_id: str | None) -> None:
        """Answer, and see a stream to its end even when the worker that makes it is lost."""
        try:
            await self._try_until_answered(life, call, worker_id)
            return
        except WorkerError as exc:
            if worker_id is not None or not life.exchange.sent:
                raise
            failure = exc
        await self._resumer.go_on(life, call, failure)

    async def _try_until_answered(self, life: Life, call: HttpCall, worker_id: str | None) -> None:
        """Try routes until one answers; once a byte of a body is out there is no other try."""
        failure: WorkerError | None = None
        while True:
            route = (
                await self._place(life, failure) if worker_id is None else Route(worker_id, None, "asked for by name")
            )
            if failure is not None:
                self._observer.metrics.retried(failure.name)
            life.attempts += 1
            life.decode, life.prefill, life.reason = route.decode, route.prefill, route.reason
            now_s, session = _now_s(), self._pool.session(route.decode)
            life.record.submitted(now_s)
            self._breakers.sent(route.decode, now_s)
            if route.prefill is not None:
                self._breakers.sent(route.prefill, now_s)
            try:
                await self._legs.run(life, call, route)
                self._breakers.succeeded(route.decode)
                return
            except WorkerError as exc:
                life.record.failed(exc.name)
                if exc.retriable:
                    self._breakers.failed(route.decode, _now_s())
                life.excluded[route.decode] = session
                spent = life.attempts == MAX_ATTEMPTS or worker_id is not None
                if spent or not exc.retriable or life.exchange.sent:
                    raise
                failure = exc

    async def _place(self, life: Life, failure: WorkerError | None) -> Route:
        """Find the next route. What the last worker failed with says more than that there is no further one.

        A request that was taken is not refused for what the loss of its worker has cost it.
        """
        try:
            return await self._placer.place(life)
        except BatonError as exc:
            if failure is None:
                if isinstance(exc, Overloaded) and exc.earliest_s is not None:
                    life.reservation = self._knowledge.promise(life, exc)
                raise
            if not (isinstance(exc, RequestRejected) and life.operation.generates):
                raise failure from exc
        return await self._place_again(life, failure)

    async def _place_again(self, life: Life, failure: WorkerError) -> Route:
        try:
            return await self._placer.place_again(life)
        except BatonError as exc:
            raise failure from exc

    async def _tell(self, life: Life, failure: BatonError) -> None:
        """Answer with the error: as a response of its own, or as the last event of a stream that has begun."""
        exchange = life.exchange
        if exchange.response_started:
            is_within = life.transcript is not None and life.transcript.is_within_event
            exchange.finish((b"\n\n" if is_within else b"") + stream_event(failure))
            return
        life.status, headers, body = answer(failure)
        if life.reservation is not None:
            headers.append((RESERVATION_HEADER, life.reservation.encode()))
        block = header_block(headers)
        if not isinstance(failure, PayloadTooLarge):
            exchange.respond(life.status, block, body)
            return
        try:
            await within(LAST_WORDS_S, exchange.respond_unread(life.status, block, body))
        except (TimeoutError, ClientGone):
            exchange.give_up()

    def _internal_error(self, life: Life, error: Exception) -> BatonError:
        log.error("request %s failed in the router", life.exchange.request_id, exc_info=error)
        return BatonError(f"internal error in request {life.exchange.request_id}")


def _call(life: Life, body: bytes, nonce: str) -> HttpCall:
    """Make what a worker is asked of what the client asked."""
    exchange = life.exchange
    given = exchange.headers
    headers = tuple([(name.decode(), given[name].decode("latin-1")) for name in FORWARDED if name in given])
    return HttpCall(exchange.request_id, exchange.method, exchange.path, headers, body, nonce)
