"""The policy that predicts: find the best way to serve a request, and let it go, hold it or refuse it.

Owns the order of the questions, and when a request runs whole. Must not know how predictions are made
(core.policy.prediction), how options are found (core.policy.options) or what they are refused for
(core.policy.admission).
"""

from __future__ import annotations

import math
from typing import Final

from core.policy.admission import Admission, Case
from core.policy.context import PolicyContext
from core.policy.fallback import NO_PAIR, NO_WORKER
from core.policy.least_work import LeastPredictedWork
from core.policy.options import Asked, Option, Options, strain
from core.policy.prediction import PoolForecast
from core.policy.promise import Promises
from core.policy.roster import Roster
from core.types import ClusterView, Decision, RequestShape, Role, Route

UNKNOWN_COSTS: Final = "least predicted work, for no costs are known yet"
WHOLE: Final = "whole is sooner and keeps every target with room"
# A request runs whole, unasked, only where every target keeps this much to spare: a prompt beside outputs is a risk.
_ROOM: Final = 0.8
# And only where decode is the less strained side, up to half of what it may take; hardly strained it is in any case.
_MOST_STRAINED: Final = 0.5
_HARDLY_STRAINED: Final = 0.1


class SLOAware:
    """Picks the option with the most headroom in both targets, and admits by prediction."""

    def __init__(self, context: PolicyContext) -> None:
        """Take costs, targets and limits; while a role's cost is not known, the least predicted work decides."""
        self._context = context
        self._blind = LeastPredictedWork(context.whole_below_tokens)
        self._brain = _Brain.of(context)

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        """Place one request; see Policy."""
        if self._brain is not None:
            return self._brain.decide(request, cluster, now_s)
        decision = self._blind.decide(request, cluster, now_s)
        if isinstance(decision, Route) and decision.prefill is not None:  # else there was another reason
            return decision._replace(reason=UNKNOWN_COSTS)
        return decision

    def options(self, request: RequestShape, cluster: ClusterView, now_s: float, *, limit: int) -> tuple[Route, ...]:
        """List the routes that were open to the request, best first; see PredictingPolicy."""
        if self._brain is None:
            decision = self.decide(request, cluster, now_s)
            return (decision,) if isinstance(decision, Route) and limit > 0 else ()
        return self._brain.options(request, cluster, now_s, limit)


class _Brain:
    """The policy once costs are known."""

    def __init__(self, context: PolicyContext, pools: dict[Role, PoolForecast]) -> None:
        self._context = context
        self._pools = pools
        self._sending, self._receiving = pools[Role.PREFILL], pools[Role.DECODE]
        self._roster = Roster(pools)
        self._promises = Promises(context)
        self._options = Options(context, pools)
        self._admission = Admission(context, pools, self._promises)

    @classmethod
    def of(cls, context: PolicyContext) -> _Brain | None:
        """Make it if the cost of both roles is known."""
        pools = {}
        for role in Role:
            facts = context.pools.get(role)
            if facts is None or facts.cost is None:
                return None
            pools[role] = PoolForecast(facts, facts.cost, mean_output_tokens=context.mean_output_tokens)
        return cls(context, pools)

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        roster = self._roster.of(cluster)
        if not roster.groups:
            return NO_WORKER
        asked = self._asked(request, cluster, roster, now_s)
        option = self._best(request, asked, roster, now_s)
        return self._admission.judge(Case(request, asked.promise, cluster, roster, now_s), option)

    def options(self, request: RequestShape, cluster: ClusterView, now_s: float, limit: int) -> tuple[Route, ...]:
        roster = self._roster.of(cluster)
        if not roster.groups or limit < 1:
            return ()
        asked = self._asked(request, cluster, roster, now_s)
        best, promise = self._best(request, asked, roster, now_s), asked.promise
        found = [] if _alone(request, roster) else self._options.pairs(asked, roster, now_s, width=limit)
        reason = _alone(request, roster) or "whole"
        found += self._options.wholes(asked, roster, reason, now_s, width=limit)
        others = sorted(found, key=lambda option: strain(option, promise))
        taken = (best.decode, best.prefill)
        chosen = [best, *(other for other in others if (other.decode, other.prefill) != taken)][:limit]
        return tuple(Route(o.decode, o.prefill, o.reason, o.forecast(self._pools, request.margins)) for o in chosen)

    def _asked(self, request: RequestShape, cluster: ClusterView, roster: Roster, now_s: float) -> Asked:
        sending = self._sending if roster.num_senders else self._receiving
        own_s = sending.prompt_s(request.prompt_tokens) + self._context.request_overhead_s
        if roster.num_senders and not self._context.first_token_from_prefill:
            own_s += self._context.handover_overhead_s
        promise = self._promises.of(request, own_s, now_s)
        if not cluster.held.keys_s:
            return Asked(request.prompt_tokens, request.cached, promise)
        held_s = self._admission.ahead_s(cluster.held, promise, roster)
        return Asked(request.prompt_tokens, request.cached, promise, *held_s)

    def _best(self, request: RequestShape, asked: Asked, roster: Roster, now_s: float) -> Option:
        """Find the best option; there is at least one worker."""
        reason = _alone(request, roster)
        if reason is None:
            pair = self._options.best_pair(asked, roster, now_s)
            if pair is not None:
                return self._whole_instead(request, asked, pair, roster, now_s) or pair
            reason = NO_PAIR
        wholes = self._options.wholes(asked, roster, reason, now_s)
        return min(wholes, key=lambda option: strain(option, asked.promise))

    def _whole_instead(
        self, request: RequestShape, asked: Asked, pair: Option, roster: Roster, now_s: float
    ) -> Option | None:
        """Find a decode worker that had better serve the request whole."""
        is_asked_for = False
        below, promise = self._context.whole_below_tokens, asked.promise
        if below and asked.tokens <= below:
            reason, is_asked_for = f"at most {below} prompt tokens", True
        elif self._context.overflow and pair.ttft_s > promise.budget_s:
            reason = "the pair would be late"
        elif not below and self._options.stall_s(asked) <= _ROOM * self._promises.stall_limit_s(promise):
            # Where outputs are made the fastest, none else: this is asked of every short prompt.
            whole = self._options.sooner_whole(asked, pair, WHOLE, now_s)
            if whole is None or not self._keeps(request, asked, whole, _ROOM):
                return None
            return whole if self._eases(request, asked, pair, whole) else None
        else:
            return None
        wholes = self._options.wholes(asked, roster, reason, now_s)
        kept = [whole for whole in wholes if self._keeps(request, asked, whole, 1.0)]
        if not is_asked_for:
            kept = [whole for whole in kept if self._eases(request, asked, pair, whole)]
        return min(kept, key=_soonest, default=None)

    def _keeps(self, request: RequestShape, asked: Asked, whole: Option, room: float) -> bool:
        slowed_s = self._options.slowed_s(asked, whole)
        return self._admission.keeps(request, asked.promise, whole, slowed_s=slowed_s, room=room)

    def _eases(self, request: RequestShape, asked: Asked, pair: Option, whole: Option) -> bool:
        """Say whether a whole request takes from the side that has more to spare.

        A side's strain is the share of its slack in use: of prefill what the pair waits for, of all that the target
        leaves beside the request's own time; of decode what others and this prompt add to the request's own steps.
        """
        promise = asked.promise
        alone_s = self._pools[Role.DECODE].alone_s(asked.tokens) * whole.batch.factor
        added_s = whole.tpot_s + self._options.slowed_s(asked, whole) - alone_s
        slack_s = self._admission.tpot_limit_s(request, promise, whole) - alone_s
        waits_s, own_s = pair.queue_s, pair.ttft_s - pair.queue_s
        strained = waits_s / (promise.budget_s - own_s) if own_s < promise.budget_s else math.inf
        return added_s <= max(_HARDLY_STRAINED, min(strained, _MOST_STRAINED)) * slack_s


def _alone(request: RequestShape, roster: Roster) -> str | None:
    """Say why a request cannot go to a pair; None when one may be looked for."""
    if not roster.num_receivers:
        return "no decode worker"
    if request.whole_only is not None:
        return request.whole_only
    return None if roster.num_senders else "no prefill worker"


def _soonest(option: Option) -> tuple[float, float, str]:
    return option.ttft_s, option.tpot_s, option.decode
