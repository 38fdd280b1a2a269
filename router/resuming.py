"""How a stream goes on when the worker that makes it is lost: placed again with what its client has, until it ends.

Owns whether and how often that is tried, and what is counted of it. Must not know how a place is found
(router.placing), how a try is made up of legs, nor how what was sent is compared (router.transcript).
"""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import Final

from cluster.pool import WorkerPool
from core.engine import HttpCall
from core.errors import BatonError, WorkerError
from core.policy.breaker import Breakers
from router.legs import Legs
from router.life import Life
from router.metrics import RouterMetrics
from router.placing import Placer

MAX_RESUMES: Final = 3  # of one stream: a request that kills every engine it comes to must not come to all of them


class Resumer:
    """Goes on with streams; holds nothing between them."""

    def __init__(
        self, *, pool: WorkerPool, placer: Placer, legs: Legs, metrics: RouterMetrics, breakers: Breakers
    ) -> None:
        self._pool = pool
        self._placer = placer
        self._legs = legs
        self._metrics = metrics
        self._breakers = breakers

    async def go_on(self, life: Life, call: HttpCall, failure: WorkerError) -> None:
        """Answer the rest of a stream whose worker failed.

        Raises that failure if the stream cannot be made again elsewhere or there is nowhere to; ResumeFailed if what is
        made there is not what was sent.
        """
        transcript = life.transcript
        for _ in range(MAX_RESUMES):
            if transcript is None or not failure.retriable:
                raise failure
            if transcript.is_complete:
                life.exchange.finish()
                return
            outcome = await self._try(life, replace(call, resume=transcript.order()), failure)
            if outcome is None:
                return
            failure = outcome
        raise failure

    async def _try(self, life: Life, call: HttpCall, failure: WorkerError) -> WorkerError | None:
        """Go on at one more place; return what went wrong there. Raises `failure` when there is none."""
        try:
            route = await self._placer.place_again(life)
        except BatonError as exc:
            self._metrics.resumed(exc.name)
            raise failure from exc
        session, num_before = self._pool.session(route.decode), life.num_resumed
        life.decode, life.prefill, life.reason = route.decode, route.prefill, route.reason
        now_s = monotonic()
        for worker_id in filter(None, (route.decode, route.prefill)):
            self._breakers.sent(worker_id, now_s)
        try:
            await self._legs.run(life, call, route)
        except WorkerError as exc:
            life.excluded[route.decode] = session
            if exc.retriable:
                self._breakers.failed(route.decode, monotonic())
            self._metrics.resumed("ok" if life.num_resumed > num_before else exc.name)
            return exc
        finally:
            life.decode_facts = life.prefill_facts = None  # of a leg that did not make the first token
        self._metrics.resumed("ok")
        self._breakers.succeeded(route.decode)
        return None
