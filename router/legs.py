"""The legs of one try: submitted to the workers of a route, aborted when they are not needed.

Owns every rule about a single try. Must not choose routes, count tries, or answer errors; how a reply reaches the
client is router.relay's.
"""

from __future__ import annotations

import time
from http import HTTPStatus

from cluster.codec import SubmitEncoder
from cluster.pool import WorkerPool
from cluster.session_client import WorkerSession
from core.engine import HttpCall
from core.errors import BatonError, WorkerLost
from core.policy.breaker import Breakers
from core.policy.context import Tier
from core.types import Handover, Leg, Route
from router.ids import SecretIds
from router.life import Life
from router.observer import Observer
from router.relay import Answer, PrefillLeg


class Legs:
    """Runs tries; holds nothing between them."""

    def __init__(
        self, *, pool: WorkerPool, lease_s: float, ids: SecretIds, observer: Observer, breakers: Breakers
    ) -> None:
        self._pool = pool
        self._lease_s = lease_s
        self._ids = ids
        self._observer = observer
        self._breakers = breakers

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
        answer = Answer(life, self._observer)
        try:
            worker.send(answer, Leg.WHOLE, _order(life, call, None, worker))
            await answer.out()
        finally:
            answer.abort()
            _ended(life, Leg.WHOLE)
            life.decode_facts = answer.facts

    async def _run_pair(self, life: Life, call: HttpCall, prefill: WorkerSession, decode: WorkerSession) -> None:
        due_in_s = None if life.slo.tier is Tier.BEST_EFFORT else life.arrived_s + life.slo.ttft_s - time.monotonic()
        handover = Handover(self._ids.new(), decode.hello.kv_address, self._lease_s, due_in_s)
        order = _order(life, call, handover, prefill, decode)

        def prefilled(outcome: str, reason: str, error: BatonError | None) -> None:
            life.record.is_handing_over = False
            self._observer.metrics.handed_over(outcome)
            _ended(life, Leg.PREFILL)
            if reason:
                decode.cancel_transfer(handover.transfer_id, reason)
            if outcome == "ok":
                self._breakers.succeeded(prefill.record.worker_id)
            elif error is not None and error.retriable:
                self._breakers.failed(prefill.record.worker_id, time.monotonic())

        answer, prefill_leg = Answer(life, self._observer), PrefillLeg(prefilled)
        is_answered = False
        life.record.is_handing_over = True
        try:
            decode.send(answer, Leg.DECODE, order)
            self._send_prefill(prefill, prefill_leg, order)
            await answer.out()
            is_answered = life.status == HTTPStatus.OK
        finally:
            answer.abort()
            prefill_leg.abort()
            _ended(life, Leg.DECODE)
            life.decode_facts, life.prefill_facts = answer.facts, prefill_leg.facts
            if not is_answered:
                # The prefill leg may be done and its KV wait for a request that never came to be scheduled.
                decode.cancel_transfer(handover.transfer_id, "the decode leg ended early")

    @staticmethod
    def _send_prefill(prefill: WorkerSession, leg: PrefillLeg, order: SubmitEncoder) -> None:
        """Submit the prefill leg; a worker that does not take it is as one that fails."""
        try:
            prefill.send(leg, Leg.PREFILL, order)
        except BatonError as exc:
            leg.end(exc)


def _order(
    life: Life,
    call: HttpCall,
    handover: Handover | None,
    prompting: WorkerSession,
    decode: WorkerSession | None = None,
) -> SubmitEncoder:
    """Encode what both legs share, and the trace in which they differ; without `decode` there is one leg.

    The worker that computes the prompt orders its queue by the slack that is left.
    """
    trace, now_s = life.record.trace, time.monotonic()
    traceparents = None
    if trace is not None:
        legs = {Leg.WHOLE: prompting} if decode is None else {Leg.PREFILL: prompting, Leg.DECODE: decode}
        traceparents = trace.begin({leg: worker.record.worker_id for leg, worker in legs.items()}, now_s)
    known_tokens = life.facts.prompt_tokens + (0 if call.resume is None else len(call.resume.token_ids))
    uncached = known_tokens - life.record.believed_cached(prompting.record.worker_id)
    tpot_s = None if life.slo.tier is Tier.BEST_EFFORT else life.slo.tpot_s
    return SubmitEncoder(
        call,
        handover,
        prompt_tokens=max(1, uncached),
        slack_s=life.slack_s(now_s),
        tpot_s=tpot_s,
        traceparents=traceparents,
    )


def _ended(life: Life, leg: Leg) -> None:
    """Note the end of a leg, if the request is traced."""
    if life.record.trace is not None:
        life.record.trace.end(leg, time.monotonic())
