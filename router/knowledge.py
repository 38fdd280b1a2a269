"""What a router has learnt, as shapes of requests tell it to policies: prefix caches, lengths of tokens, tenants'
service, promised times, and how far predictions can be believed.

Owns these accountants: asks them when a request is decided, teaches them when it has ended. Must not decide.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from time import monotonic, time
from typing import Final

from core.errors import Overloaded
from core.policy.calibration import Calibration
from core.policy.fairness import TenantService
from core.policy.prefix_index import PrefixIndex
from core.policy.promised_work import PromisedWork
from core.policy.reservations import Reservations
from core.router_spec import RouterSpec
from core.types import ClusterView, HeldWork, LegFacts, Membership, RequestShape, Route
from router.life import Life
from router.prompt_pieces import TokenEstimate
from router.series import RecentShare

# What tokens cost tenants, beside each other: an output token takes a decode step's share for itself, prompt tokens
# come in hundreds. Of Llama-3.1-8B on an H100, about (deploy/devices).
PROMPT_TOKEN_S: Final = 2e-5
OUTPUT_TOKEN_S: Final = 3e-4
RESERVATION_HEADER: Final = b"x-baton-reservation"
RESERVATION_WINDOW_S: Final = 5.0
_RETURN_GAIN: Final = 1 / 32
_RATE_WINDOW_S: Final = 10
_LEAST_RATE_PER_S: Final = 1.0  # of promises, however little was served lately
_PROMISED_RATE_SHARE: Final = 0.5  # the rest is for requests that come for the first time


class Knowledge:
    """The accountants of one router."""

    def __init__(
        self,
        spec: RouterSpec,
        calibration: Calibration,
        weights: Mapping[str, float],
        answered: Callable[[int, float | None], None],
    ) -> None:
        """`answered` is told each output's tokens, and the overhead of its first one, in seconds, if it is known."""
        self._answered = answered
        self._calibration = calibration
        self._has_tenants = bool(spec.tenants_file)
        self._prefixes = PrefixIndex(spec.prefix_index_bytes)
        self._membership: Membership | None = None  # whose workers the prefix index may know
        self._joined: set[str] = set()  # of those, the ones known by the epoch of that membership
        self.estimate = TokenEstimate()
        self._service = TenantService(prompt_token_s=PROMPT_TOKEN_S, output_token_s=OUTPUT_TOKEN_S, weights=weights)
        self._reservations = (
            Reservations(spec.token, issuer=secrets.token_hex(8), window_s=RESERVATION_WINDOW_S) if spec.token else None
        )
        self._promised = PromisedWork(window_s=RESERVATION_WINDOW_S)
        self._num_overdue = 0  # of the promised, as told when `_return_share` was last brought up to it
        self._return_share = 1.0  # of the refused, who come back at their time
        self._served = RecentShare(_RATE_WINDOW_S)

    def follow(self, membership: Membership | None) -> None:
        """Forget the workers that are announced no longer."""
        if membership is self._membership:
            return
        before, self._membership = self._membership, membership
        self._joined.clear()
        announced = set() if membership is None else {w.worker_id for w in membership.workers}
        for worker in () if before is None else before.workers:
            if worker.worker_id not in announced:
                self._prefixes.forget(worker.worker_id)

    def promised(self, now_s: float) -> HeldWork:
        """Tell of the refused requests that are still to come back; the same object until something changes.

        Of clients that hardly ever come back hardly any capacity is kept free for.
        """
        work = self._promised.work(now_s)
        while self._num_overdue < self._promised.num_overdue:
            self._num_overdue += 1
            self._return_share -= _RETURN_GAIN * self._return_share
        return work

    def arrived(self, life: Life) -> None:
        """Take up a request whose body was read."""
        if self._has_tenants:
            self._service.arrived(life.tenant.name)

    def shape_of(self, life: Life, now_s: float, *, sequence: int) -> RequestShape:
        """Say what a policy may know of a request."""
        facts, asked = life.facts, life.asked
        tenant = life.tenant.name
        return RequestShape(
            life.exchange.request_id,
            facts.prompt_tokens,
            facts.max_tokens,
            asked.slo_class,
            facts.whole_only,
            sequence,
            tenant,
            asked.ttft_s,
            asked.tpot_s,
            now_s - life.arrived_s,
            facts.priority,
            self._prefixes.lookup(facts.prompt.pieces),
            self._service.over_share_s(tenant) if self._has_tenants else 0.0,
            life.is_reserved,
            self._calibration.margins(asked.slo_class),
            self._calibration.measured_attainment(asked.slo_class),
        )

    def routed(self, life: Life, route: Route, view: ClusterView) -> None:
        """Believe that both workers of a route will have the prompt cached: it is handed over whole."""
        pieces = life.facts.prompt.pieces
        if not pieces:
            return
        for worker_id in (route.decode, route.prefill):
            if worker_id is not None:
                if worker_id not in self._joined:
                    self._join(worker_id, view)
                self._prefixes.record(worker_id, pieces)

    def _join(self, worker_id: str, view: ClusterView) -> None:
        """Make a worker known to the prefix index, a restarted one with nothing in its cache."""
        worker = next((w for w in view.workers if w.record.worker_id == worker_id), None)
        if worker is not None:
            blocks, block_size = worker.hello.num_kv_blocks, worker.hello.fingerprint.block_size
            self._prefixes.join(worker_id, epoch=worker.record.epoch, num_kv_blocks=blocks, block_size=block_size)
            self._joined.add(worker_id)

    def ended(self, life: Life) -> None:
        """Learn from a request that has ended."""
        record = life.record
        sender = life.prefill if life.prefill_facts is not None else life.decode
        facts = life.prefill_facts or life.decode_facts
        if facts is not None and sender is not None:
            self._learn_prompt(life, sender, facts)
        # Of a request whose client left the worker reports nothing, but it cost what it cost.
        estimated = life.facts.prompt_tokens if life.decode is not None else 0
        prompt_tokens = estimated if facts is None else facts.prompt_tokens
        if self._has_tenants and life.is_read:
            self._service.charge(life.tenant.name, prompt_tokens, record.output_tokens)
            self._service.left(life.tenant.name)
        life.grant.settle(prompt_tokens, record.output_tokens)
        if record.outcome == "ok":
            self._answered(record.output_tokens, record.overhead_s)
            self._served.add(life.chunk_s, True)

    def redeem(self, token: str, life: Life) -> bool:
        """Tell whether a request comes at a time that it was promised."""
        if self._reservations is None:
            return False
        is_good = self._reservations.redeem(token, life.asked.slo_class, life.tenant.name, time())
        if is_good and self._promised.strike(token):
            self._return_share += _RETURN_GAIN * (1.0 - self._return_share)
        return is_good

    def promise(self, life: Life, refused: Overloaded) -> str | None:
        """Promise a refused request a time, the one its refusal names or a later one; that time is told with it.

        Returns the token to come back with; None where there is no secret to sign it, or no time to give.
        """
        if self._reservations is None or refused.earliest_s is None:
            return None
        served, _ = self._served.counts(monotonic(), _RATE_WINDOW_S)
        rate_per_s = max(_LEAST_RATE_PER_S, _PROMISED_RATE_SHARE * served / _RATE_WINDOW_S)
        now_s = time()
        reservation = self._reservations.issue(
            life.asked.slo_class,
            life.tenant.name,
            earliest_s=now_s + refused.earliest_s,
            rate_per_s=rate_per_s,
            now_s=now_s,
        )
        if reservation is None:
            return None
        refused.earliest_s = refused.retry_after_s = reservation.earliest_s - now_s
        expected_tokens = round(self._return_share * life.facts.prompt_tokens)
        self._promised.note(reservation.token, monotonic() + refused.earliest_s, expected_tokens)
        return reservation.token

    def _learn_prompt(self, life: Life, sender: str, facts: LegFacts) -> None:
        prompt = life.facts.prompt
        self.estimate.observe(prompt.num_bytes, facts.prompt_tokens)
        if prompt.pieces:
            self._prefixes.correct(
                sender,
                prompt.pieces,
                prompt_tokens=facts.prompt_tokens,
                cached_tokens=facts.cached_tokens,
                believed_tokens=life.record.believed_cached(sender),
                num_bytes=prompt.num_bytes,
            )
