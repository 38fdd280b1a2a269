"""Where each request goes, and when: what is known of it goes into its shape, the policy decides, and what no worker
has room for is held back until one has.

Owns the decisions, the queue of held requests and when they are asked about again. Must not know HTTP, nor how a route
is taken; what shapes are made of beside the request itself is router.knowledge's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from time import monotonic
from typing import Final, TypeVar

from cluster.pool import WorkerPool
from core.errors import BatonError, NoWorker, Overloaded
from core.policy.breaker import Breakers
from core.policy.context import Tier
from core.policy.least_loaded import LeastLoaded
from core.policy.pair_trust import PairTrust
from core.policy.pairing import decide_allowed
from core.policy.protocol import Policy
from core.policy.slack_queue import QueueRules, SlackQueue, Waiting
from core.router_spec import RouterSpec
from core.types import ClusterView, Decision, HeldWork, Hold, Membership, Rejection, RequestShape, Route
from router.errors import refusal
from router.event_log import EventLog
from router.knowledge import Knowledge
from router.life import Life

# Who must go first when the queue is full.
_RANKS: Final = {Tier.PROTECTED: 0, Tier.STANDARD: 1, Tier.BEST_EFFORT: 2}
_LEAST_HOLD_S: Final = 0.001  # a policy that holds until now is asked again a little later, not at once and for ever


_T = TypeVar("_T")
_NOTHING_HELD: Final = HeldWork()
_BY_COUNT: Final = LeastLoaded()


class _Held:
    """A request that waits: the future its task awaits, and when it is asked about at the latest."""

    __slots__ = ("life", "released", "timer", "waiting")

    waiting: Waiting[_Held]

    def __init__(self, life: Life, released: asyncio.Future[Route]) -> None:
        self.life = life
        self.released = released
        self.timer: asyncio.TimerHandle | None = None


class Placer:
    """Decides for the requests of one router, one at a time."""

    def __init__(
        self,
        *,
        pool: WorkerPool,
        policy: Policy,
        spec: RouterSpec,
        breakers: Breakers,
        knowledge: Knowledge,
        pairs: PairTrust,
        event_log: EventLog | None = None,
    ) -> None:
        self._pool = pool
        self._policy = policy
        self._breakers = breakers
        self._knowledge = knowledge
        self._pairs = pairs
        self._event_log = event_log
        self._ranks = {c.name: _RANKS[c.tier] for c in spec.slo_classes}
        self._queue: SlackQueue[_Held] = SlackQueue(QueueRules(max_items=spec.max_held_requests))
        self._worker_wait_s = spec.worker_wait_s
        self._pump_due = False
        self._going: _Held | None = None  # was let go, and is not sent yet: the view does not show it
        self._head_timer: asyncio.TimerHandle | None = None  # asks about the first in turn again
        self._view = ClusterView()  # as decided on last, and what it was made of
        self._made_of: tuple[ClusterView, HeldWork, HeldWork] | None = None
        self._num_decisions = 0
        self._membership: Membership | None = None  # that is followed

    @property
    def num_held(self) -> int:
        """Count the requests that wait for room."""
        return len(self._queue)

    def view(self) -> ClusterView:
        """Return the workers and what is held back for want of room; the same object until something changes."""
        return self._seen(self._queue.held())

    async def place(self, life: Life) -> Route:
        """Find a route for a request, waiting for room if the policy says so.

        Raises what the policy refuses it with, Overloaded when the queue is full.
        """
        if not life.operation.generates:
            return await self._once_connected(life, self._any_worker)
        decision = await self._once_connected(life, self._decide_in_turn)
        if isinstance(decision, Hold):
            return await self._hold(life, decision)
        return decision

    def _decide_in_turn(self, life: Life) -> Route | Hold:
        """Ask the policy after what waits. Raises what it refuses the request with."""
        if self._queue:
            self._pump()  # what waits goes before what comes
        decision = self._decide(life, self.view())
        if isinstance(decision, Rejection):
            raise refusal(decision, slo_class=life.slo.name)
        return decision

    async def place_again(self, life: Life) -> Route:
        """Find a route for a stream that has begun, whose worker was lost: it is neither refused nor held for room.

        Raises NoWorker when there is none and none came in time.
        """
        return await self._once_connected(life, self._route_again)

    def _route_again(self, life: Life) -> Route:
        now_s, view = monotonic(), self._pool.view()
        excluded = self._excluded(life, view, now_s)
        shape = self._knowledge.shape_of(life, now_s, sequence=self._num_decisions)
        sent_tokens = 0 if life.transcript is None else life.transcript.num_tokens
        # As a new request with a longer prompt: what it waited before its first token is of no account any more.
        shape = shape._replace(prompt_tokens=shape.prompt_tokens + sent_tokens, waited_s=0.0)

        def decide(excluded: frozenset[str]) -> Decision:
            left = view.without(excluded)
            decision = self._policy.decide(shape, left, now_s)
            return decision if isinstance(decision, Route) else _BY_COUNT.decide(shape, left, now_s)

        _, decision = decide_allowed(decide, frozenset(excluded), self._pairs.allows)
        if isinstance(decision, Rejection):
            raise refusal(decision, slo_class=life.slo.name)
        assert isinstance(decision, Route), "least loaded holds nothing back"
        self._knowledge.routed(life, decision, view)
        return decision

    async def _once_connected(self, life: Life, find: Callable[[Life], _T]) -> _T:
        """Find a route; while there is none but an announced worker is not connected, wait for it, within a bound."""
        until_s = monotonic() + self._worker_wait_s
        while True:
            num_joined = self._pool.num_joined
            try:
                return find(life)
            except NoWorker:
                if not self._pool.is_worker_missing or monotonic() >= until_s:
                    raise
            while self._pool.num_joined == num_joined and (left_s := until_s - monotonic()) > 0:
                await self._pool.wait_changed(left_s)

    def _any_worker(self, life: Life) -> Route:
        """Find a worker for a request that makes no tokens: it has no SLO to be held or refused for."""
        view, now_s = self.view(), monotonic()
        excluded = self._excluded(life, view, now_s)
        shape = RequestShape(life.exchange.request_id, 0, None, life.slo.name, whole_only="makes no tokens")
        decision = _BY_COUNT.decide(shape, view.without(excluded), now_s)
        if isinstance(decision, Rejection):
            raise refusal(decision, slo_class="")
        return decision

    def _seen(self, held: HeldWork) -> ClusterView:
        view, promised = self._pool.view(), self._knowledge.promised(monotonic())
        made_of = self._made_of
        if made_of is None or made_of[0] is not view or made_of[1] is not held or made_of[2] is not promised:
            self._made_of = view, held, promised
            self._view = ClusterView(view.workers, held, promised) if held.keys_s or promised.keys_s else view
        return self._view

    def _decide(self, life: Life, view: ClusterView) -> Decision:
        """Ask the policy, without the workers that must not get the request."""
        now_s = monotonic()
        excluded = self._excluded(life, view, now_s)
        if self._pool.membership is not self._membership:
            self._follow(self._pool.membership)
        shape = self._knowledge.shape_of(life, now_s, sequence=self._num_decisions)
        self._num_decisions += 1
        excluded, decision = decide_allowed(
            lambda excluded: self._policy.decide(shape, view.without(excluded), now_s),
            frozenset(excluded),
            self._pairs.allows,
        )
        life.record.decided(shape, view, excluded, now_s, decision)
        if isinstance(decision, Route):
            self._knowledge.routed(life, decision, view)
        if self._event_log is not None:
            self._event_log.decided(shape, excluded, view, now_s, decision)
        return decision

    def _follow(self, membership: Membership | None) -> None:
        """Forget what was known of workers that are announced no longer."""
        self._membership = membership
        self._knowledge.follow(membership)
        workers = () if membership is None else membership.workers
        self._breakers.keep_only(frozenset(worker.worker_id for worker in workers))

    def _excluded(self, life: Life, view: ClusterView, now_s: float) -> Collection[str]:
        """Name the workers that must not get the request: it failed on them, or others fail on them one after another.

        A worker on which requests fail is still better than none.
        """
        failed = self._failed(life) if life.excluded else frozenset[str]()
        left_out = self._breakers.left_out(now_s)
        if not left_out:
            return failed
        excluded = left_out | failed
        return failed if all(w.record.worker_id in excluded for w in view.workers) else excluded

    def _failed(self, life: Life) -> frozenset[str]:
        """Name the workers that failed a request and have not been connected anew since."""
        sessions = ((worker_id, self._pool.session(worker_id), failed) for worker_id, failed in life.excluded.items())
        return frozenset(worker_id for worker_id, session, failed in sessions if session is failed or session is None)

    async def _hold(self, life: Life, decision: Hold) -> Route:
        held = _Held(life, asyncio.get_running_loop().create_future())
        try:
            self._queue_up(held, decision)
            self._pool.on_change = self._wake
            return await held.released
        finally:
            if held.timer is not None:
                held.timer.cancel()
            self._queue.remove(held.waiting)
            if self._going is held:
                self._going = None
            if self._queue:
                self._wake()  # after this pass of the loop, in which it is sent
            else:
                self._pool.on_change = None

    def _queue_up(self, held: _Held, decision: Hold) -> None:
        """Put a request into the queue; it is asked about in its turn, and when it can no longer be begun in time."""
        loop = asyncio.get_running_loop()
        held.waiting = Waiting(decision.key_s, held.life.facts.prompt_tokens, held, self._ranks[held.life.slo.name])
        gone = self._queue.push(held.waiting, monotonic())
        if gone is not None:
            self._refuse(gone.payload, Overloaded(f"{len(self._queue)} requests wait for room already"))
        if held.timer is not None:
            held.timer.cancel()
        late_in_s = max(_LEAST_HOLD_S, decision.until_s - monotonic(), held.life.slack_s(monotonic()))
        held.timer = loop.call_later(late_in_s, self._ask_out_of_turn, held)
        if self._queue.peek(monotonic()) is held.waiting:
            self._ask_first_in(decision.until_s - monotonic())

    def _wake(self) -> None:
        """Look at the queue once what changes now has changed."""
        if not self._pump_due:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _ask_first_in(self, seconds: float) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = asyncio.get_running_loop().call_later(max(_LEAST_HOLD_S, seconds), self._pump)

    def _pump(self) -> None:
        """Let the first in turn go if there is room; what follows from that wakes this again.

        Nothing counts as held before it: with lanes of their own, short prompts go before long ones of a lesser key.
        """
        self._pump_due = False
        first = self._queue.peek(monotonic())
        if first is None or self._going is not None:
            return
        held = first.payload
        decision = self._decide_for(held, self._seen(_NOTHING_HELD))
        if decision is None:
            self._wake()  # the next one is the first in turn
        elif not isinstance(decision, Hold):
            self._let_go(held, decision)
        elif decision.key_s != first.key_s:
            self._queue.remove(first)
            self._queue_up(held, decision)
        else:
            self._ask_first_in(decision.until_s - monotonic())

    def _ask_out_of_turn(self, held: _Held) -> None:
        """Decide about a held request that no longer counts as held while it is asked about."""
        if held.released.done():
            return
        self._queue.remove(held.waiting)
        decision = self._decide_for(held, self.view())
        if isinstance(decision, Hold):
            self._queue_up(held, decision)
        elif decision is not None:
            self._let_go(held, decision)

    def _decide_for(self, held: _Held, view: ClusterView) -> Decision | None:
        """Ask the policy about a held request; one that the policy fails on hears of it in its own task."""
        try:
            return self._decide(held.life, view)
        except Exception as exc:  # the boundary of the request: whoever happens to be here must not suffer for it
            self._queue.remove(held.waiting)
            if not held.released.done():
                held.released.set_exception(exc)
            return None

    def _let_go(self, held: _Held, decision: Route | Rejection) -> None:
        """End the wait of a request."""
        if isinstance(decision, Rejection):
            self._refuse(held, refusal(decision, slo_class=held.life.slo.name))
            return
        if self._queue.peek(monotonic()) is held.waiting:
            self._queue.take(0, monotonic())  # in its turn, so that the lanes are told
        held.life.record.released(monotonic())
        if not held.released.done():
            self._going = held
            held.released.set_result(decision)

    def _refuse(self, held: _Held, error: BatonError) -> None:
        self._queue.remove(held.waiting)
        held.life.record.released(monotonic())
        if not held.released.done():
            held.released.set_exception(error)
