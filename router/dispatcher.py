"""The life of a request, top to bottom: admitted, read, routed, tried, tried elsewhere, answered, accounted for.

Owns admission, the choice and number of tries, and the answer when all is lost. Must not know gRPC, how a try is made
up of legs, or how workers are found.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection
from functools import partial
from time import monotonic as _now_s
from typing import Final

from cluster.pool import WorkerPool
from core.engine import HttpCall
from core.errors import BatonError, DeadlineExceeded, InvalidRequest, Overloaded, PayloadTooLarge, WorkerError
from core.policy.breaker import Breakers
from core.policy.protocol import Policy
from core.router_spec import RouterSpec
from core.types import ClusterView, Decision, Hold, Rejection, RequestShape, Route
from router.errors import answer, rejection_error, stream_event
from router.event_log import EventLog
from router.exchange import FORWARDED, ClientGone, Exchange, header_block
from router.ids import SecretIds
from router.legs import Legs
from router.life import Life
from router.metrics import RouterMetrics
from router.routes import Operation

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
        policy: Policy,
        spec: RouterSpec,
        metrics: RouterMetrics,
        event_log: EventLog | None = None,
    ) -> None:
        self._pool = pool
        self._policy = policy
        self._event_log = event_log
        self._num_decisions = 0
        self._spec = spec
        self._metrics = metrics
        self.breakers = Breakers()
        self._ids = SecretIds()
        self._legs = Legs(pool=pool, lease_s=spec.lease_s, ids=self._ids, metrics=metrics, breakers=self.breakers)
        self._targets = {c.name: c for c in spec.slo_classes}
        self._lives: dict[Life, None] = {}  # all and only the requests whose answer is not complete, oldest first
        self._num_placed = 0  # of those, the ones whose body is read
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()  # set while there are none
        self._idle.set()

    @property
    def num_inflight(self) -> int:
        """Count the requests being served."""
        return len(self._lives)

    def begin(self, exchange: Exchange, operation: Operation, worker_id: str | None = None) -> None:
        """Serve one request in a task of its own, whatever happens; `worker_id` binds it to that worker."""
        life = Life(exchange, operation, self._targets[self._spec.slo_default], _now_s())
        life.task = asyncio.get_running_loop().create_task(self._serve(life, worker_id))
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
            self._metrics.finished(life, failure)

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
            life.facts = life.operation.read(body)
            await self._try_until_answered(life, _call(life, body), worker_id)
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
        self._check_room()
        wanted = exchange.header(b"x-slo-class")
        if wanted is not None:
            target = self._targets.get(wanted)
            if target is None:
                names = ", ".join(sorted(self._targets))
                raise InvalidRequest(f"no SLO class {wanted!r}; valid are {names}", param="x-slo-class")
            life.slo = target

    def _check_room(self) -> None:
        limit = self._spec.max_concurrent_requests
        if self._num_placed >= limit:
            raise Overloaded(f"{limit} requests are running, the limit router.max_concurrent_requests")

    def _take_place(self, life: Life) -> None:
        """Count a request once its body is here, so that bodies that never end keep nobody out."""
        self._check_room()
        self._num_placed += 1
        life.has_place = True

    async def _try_until_answered(self, life: Life, call: HttpCall, worker_id: str | None) -> None:
        """Try routes until one answers; once a byte of a body is out there is no other try."""
        failure: WorkerError | None = None
        while True:
            decision = self._decide(life) if worker_id is None else Route(worker_id, None, "asked for by name")
            if isinstance(decision, Hold):
                raise Overloaded(decision.reason)
            if isinstance(decision, Rejection):
                life.retry_after_s = decision.retry_after_s
                # What the last worker failed with says more than that there is no further one.
                raise failure or rejection_error(decision.error, decision.reason, decision.retry_after_s)
            if failure is not None:
                self._metrics.retried(failure.name)
            life.attempts += 1
            life.decode, life.prefill, life.reason = decision.decode, decision.prefill, decision.reason
            self.breakers.sent(decision.decode, _now_s())
            if decision.prefill is not None:
                self.breakers.sent(decision.prefill, _now_s())
            try:
                await self._legs.run(life, call, decision)
                self.breakers.succeeded(decision.decode)
                return
            except WorkerError as exc:
                if exc.retriable:
                    self.breakers.failed(decision.decode, _now_s())
                spent = life.attempts == MAX_ATTEMPTS or worker_id is not None
                if spent or not exc.retriable or life.exchange.sent:
                    raise
                failure = exc
                life.excluded.add(decision.decode)

    def _decide(self, life: Life) -> Decision:
        """Ask the policy, without the workers that failed this request."""
        shape = RequestShape(
            request_id=life.exchange.request_id,
            prompt_tokens=life.facts.prompt_tokens,
            max_tokens=life.facts.max_tokens,
            slo_class=life.slo.name,
            whole_only=life.facts.whole_only,
            sequence=self._num_decisions,
        )
        self._num_decisions += 1
        view, now_s = self._pool.view(), _now_s()
        excluded = self._excluded(life, view, now_s)
        decision = self._policy.decide(shape, view.without(excluded), now_s)
        if self._event_log is not None:
            self._event_log.decided(shape, excluded, view, now_s, decision)
        return decision

    def _excluded(self, life: Life, view: ClusterView, now_s: float) -> Collection[str]:
        """Name the workers that must not get the request: it failed on them, or others fail on them one after another.

        A worker on which requests fail is still better than none.
        """
        left_out = self.breakers.left_out(now_s)
        if not left_out:
            return life.excluded
        excluded = left_out | life.excluded
        return life.excluded if all(w.record.worker_id in excluded for w in view.workers) else excluded

    async def _tell(self, life: Life, failure: BatonError) -> None:
        """Answer with the error: as a response of its own, or as the last event of a stream that has begun."""
        exchange = life.exchange
        if exchange.response_started:
            exchange.finish(stream_event(failure))
            return
        life.status, headers, body = answer(failure, life.retry_after_s)
        block = header_block(headers)
        if not isinstance(failure, PayloadTooLarge):
            exchange.respond(life.status, block, body)
            return
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await exchange.respond_unread(life.status, block, body)
        except (TimeoutError, ClientGone):
            exchange.give_up()

    def _internal_error(self, life: Life, error: Exception) -> BatonError:
        log.error("request %s failed in the router", life.exchange.request_id, exc_info=error)
        return BatonError(f"internal error in request {life.exchange.request_id}")


def _call(life: Life, body: bytes) -> HttpCall:
    """Make what a worker is asked of what the client asked."""
    exchange = life.exchange
    given = exchange.headers
    headers = tuple([(name.decode(), given[name].decode("latin-1")) for name in FORWARDED if name in given])
    return HttpCall(exchange.request_id, exchange.method, exchange.path, headers, body)
