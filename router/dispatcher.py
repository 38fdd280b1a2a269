"""The life of a request, top to bottom: admitted, read, routed, tried, tried elsewhere, answered, accounted for.

Owns admission, the choice and number of tries, and the answer when all is lost. Must not know gRPC, how a try is made
up of legs, or how workers are found.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from typing import Final

from cluster.pool import WorkerPool
from core.engine import HttpCall
from core.errors import BatonError, DeadlineExceeded, InvalidRequest, Overloaded, PayloadTooLarge, WorkerError
from core.policy.protocol import Policy
from core.router_spec import RouterSpec
from core.types import Decision, Hold, Rejection, RequestShape, Route
from router.errors import answer, rejection_error, stream_event
from router.event_log import EventLog
from router.exchange import FORWARDED, ClientGone, Exchange
from router.legs import Legs
from router.life import Life
from router.metrics import RouterMetrics
from router.routes import Operation
from router.tasks import Helpers

MAX_ATTEMPTS: Final = 3
# How long a client that does not read may keep the last words of its response waiting.
LAST_WORDS_S: Final = 5.0
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:/+=@-]{1,128}\Z")

log = logging.getLogger(__name__)


class Dispatcher:
    """Serves requests, each in the task that the HTTP server made for it."""

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
        self._helpers = Helpers()
        self._legs = Legs(pool=pool, lease_s=spec.lease_s, helpers=self._helpers, metrics=metrics)
        self._targets = {c.name: c for c in spec.slo_classes}
        self._lives: set[Life] = set()  # all and only the requests whose answer is not complete
        self._idle = asyncio.Event()  # set while there are none
        self._idle.set()

    @property
    def num_inflight(self) -> int:
        """Count the requests being served."""
        return len(self._lives)

    @property
    def num_helpers(self) -> int:
        """Count the tasks that requests started and that are not done."""
        return len(self._helpers)

    async def serve(self, exchange: Exchange, operation: Operation, worker_id: str | None = None) -> None:
        """Answer one request, whatever happens; `worker_id` binds it to that worker."""
        life = Life(exchange, operation, self._targets[self._spec.slo_default], _now_s())
        self._lives.add(life)
        self._idle.clear()
        failure: Exception | None = ClientGone()  # what a cancelled task leaves behind
        try:
            failure = await self._attend(life, worker_id)
            if isinstance(failure, BatonError):
                await self._tell(life, failure)
        finally:
            self._lives.discard(life)
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

    async def close(self) -> None:
        """Wait for what the last requests started; call it when no request runs."""
        await self._helpers.join()

    async def _attend(self, life: Life, worker_id: str | None) -> Exception | None:
        """Serve until answered; return why that could not be done."""
        try:
            self._admit(life)
            async with asyncio.timeout(self._spec.request_timeout_s) as life.scope:
                await self._serve(life, worker_id)
            return None
        except TimeoutError as exc:
            if life.cause is not None:
                return life.cause
            if life.scope is None or not life.scope.expired():
                return self._internal_error(life, exc)
            return DeadlineExceeded(f"the request was not done within {self._spec.request_timeout_s:g} s")
        except (BatonError, ClientGone) as exc:
            return exc
        except Exception as exc:  # the boundary of the request's task: its client must still be answered
            return self._internal_error(life, exc)
        finally:
            life.scope = None

    def _admit(self, life: Life) -> None:
        exchange = life.exchange
        given = exchange.header(b"x-request-id")
        exchange.request_id = given if given and _REQUEST_ID.match(given) else secrets.token_hex(16)
        if given is not None and given != exchange.request_id:
            allowed = "x-request-id must be 1 to 128 letters, digits or _.:/+=@-"
            raise InvalidRequest(allowed, param="x-request-id")
        limit = self._spec.max_concurrent_requests
        if len(self._lives) > limit:
            raise Overloaded(f"{limit} requests are running, the limit router.max_concurrent_requests")
        wanted = exchange.header(b"x-slo-class")
        if wanted is not None:
            target = self._targets.get(wanted)
            if target is None:
                names = ", ".join(sorted(self._targets))
                raise InvalidRequest(f"no SLO class {wanted!r}; valid are {names}", param="x-slo-class")
            life.slo = target

    async def _serve(self, life: Life, worker_id: str | None) -> None:
        exchange = life.exchange
        body = await exchange.read_body(self._spec.max_body_bytes)
        watch = self._helpers.spawn(self._watch_client(life))
        try:
            life.facts = life.operation.read(body)
            headers = tuple(
                (name.decode(), value.decode("latin-1"))
                for name, value in exchange.headers.items()
                if name in FORWARDED
            )
            call = HttpCall(exchange.request_id, exchange.method, exchange.path, headers, body)
            await self._try_until_answered(life, call, worker_id)
        finally:
            watch.cancel()

    async def _watch_client(self, life: Life) -> None:
        await life.exchange.client_gone()
        life.break_off(ClientGone())

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
            try:
                await self._legs.run(life, call, decision)
                return
            except WorkerError as exc:
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
        decision = self._policy.decide(shape, view.without(life.excluded), now_s)
        if self._event_log is not None:
            self._event_log.decided(shape, life.excluded, view, now_s, decision)
        return decision

    async def _tell(self, life: Life, failure: BatonError) -> None:
        """Answer with the error: as a response of its own, or as the last event of a stream that has begun."""
        exchange = life.exchange
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                if exchange.started:
                    await exchange.finish(stream_event(failure))
                    return
                life.status, headers, body = answer(failure, life.retry_after_s)
                if isinstance(failure, PayloadTooLarge):
                    await exchange.respond_unread(life.status, headers, body)
                else:
                    await exchange.respond(life.status, headers, body)
        except TimeoutError:
            log.warning("request %s: the client does not read its error", exchange.request_id)

    def _internal_error(self, life: Life, error: Exception) -> BatonError:
        log.error("request %s failed in the router", life.exchange.request_id, exc_info=error)
        return BatonError(f"internal error in request {life.exchange.request_id}")


def _now_s() -> float:
    return asyncio.get_running_loop().time()
