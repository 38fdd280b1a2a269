"""What becomes of a request once its best option is known: it goes, it is held, or it is refused with a time.

Owns the three rules. Must not search for options, and knows no queue but what the view tells of it.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, NamedTuple

from core.policy.calibration import admits_by_measure
from core.policy.context import PolicyContext
from core.policy.interval import end_s
from core.policy.options import Option
from core.policy.prediction import PoolForecast
from core.policy.promise import LATE_S, NO_TARGET, Promise, Promises
from core.policy.roster import Roster
from core.types import ClusterView, Decision, HeldWork, Hold, Rejection, RequestShape, Role, Route

CONFIDENCE: Final = 0.9
# A worker is given work until it has so much of the tightest TTFT target before it: what comes then can still be in
# time, and what is held meanwhile can be overtaken.
_DEPTH_SHARE: Final = 0.25
_SOONEST_S: Final = 0.001  # between these a held request is asked about again
_LATEST_S: Final = 1.0
# Promised times leave this share of the capacity to requests that come for the first time.
_PROMISED_SHARE: Final = 0.5
_MOST_EARLIEST_S: Final = 600.0  # beyond it no time is named
# A margin on what is uncertain is no more than so many times the prediction: where intervals are wider, waiting for
# certainty would leave workers idle.
_MOST_OVER: Final = 2.0
# And it is this share of the interval above the prediction: a request at the edge is worth its place when it keeps its
# target four times in five (0.5 x 1.645 standard deviations of a normal distribution).
_EDGE: Final = 0.5
_ROUNDING: Final = 1e-9  # of a target
# A batch may grow to where what others add to an output token leaves this much, as a share of it, before the target:
# those on their way come together, and outputs are longer than their mean.
_GROWTH_MARGIN: Final = 0.25


class Case(NamedTuple):
    """A request and the cluster that it meets."""

    request: RequestShape
    promise: Promise
    cluster: ClusterView
    roster: Roster
    now_s: float


class Admission:
    """Judges options."""

    def __init__(self, context: PolicyContext, pools: Mapping[Role, PoolForecast], promises: Promises) -> None:
        """Take what is to be refused, whether requests may be held, and the costs of both roles."""
        self._context = context
        self._pools = pools
        self._protected_tpot_s = promises.protected_tpot_s
        self._depth_s = {
            role: max(min(pool.batch_s, _DEPTH_SHARE * promises.tightest_ttft_s), pool.prompt_s(1))
            for role, pool in pools.items()
        }

    def ahead_s(self, held: HeldWork, promise: Promise, roster: Roster) -> tuple[float, float]:
        """Predict what held requests take of each worker's time: those with a lesser key, and those that share a step.

        A prompt that waits for its step ends with all that join it meanwhile, up to what a worker is given at once.
        """
        ahead = held.tokens_before[bisect_left(held.keys_s, promise.key_s)]
        token_s = self._per_token_s(roster)
        behind = held.tokens_before[bisect_left(held.keys_s, promise.key_s + LATE_S)] - ahead  # of its own tier
        behind_s = behind * token_s
        return ahead * token_s, min(behind_s, self._depth_s[Role.PREFILL if roster.num_senders else Role.DECODE])

    def judge(self, case: Case, option: Option) -> Decision:
        """Decide on the best option of a request."""
        context, promise, now_s = self._context, case.promise, case.now_s
        is_firm = case.request.is_reserved
        if case.request.attainment is not None:  # nobody is refused by predictions that have been wrong
            is_firm = True
            if (refused := self._by_measure(case)) is not None:
                return refused
        ttft_s = option.ttft_s + self._ttft_margin_s(case.request, promise, option)
        if case.cluster.promised.keys_s and not is_firm and not promise.is_protected:
            ttft_s += self._promised_s(case)
        is_late = ttft_s > promise.budget_s * (1.0 + _ROUNDING)
        may_wait = promise.is_best_effort and promise.latest_s > now_s
        if context.may_hold and not self._has_room(option, promise):
            if is_late and context.admit_by_ttft and not is_firm and not may_wait:
                return self._too_late(case, option, ttft_s)
            return self._held("no worker has room", case, option, self._room_in_s(option, promise))
        if is_late and context.admit_by_ttft and not is_firm:
            return self._too_late(case, option, ttft_s)
        limit_s = self.tpot_limit_s(case.request, promise, option)
        if option.tpot_s > limit_s and context.admit_by_tpot and not is_firm:
            return self._too_slow(case, option, limit_s)
        if context.may_hold and option.ahead_s > 0.0 and promise.gives_way:  # it would take the place they wait for
            return self._held("others are held before it", case, option, _SOONEST_S)
        forecast = option.if_it_goes().forecast(self._pools, case.request.margins)
        return Route(option.decode, option.prefill, option.reason, forecast)

    def _by_measure(self, case: Case) -> Rejection | None:
        """Refuse some, where predictions are not trusted, if too few of those let in keep their SLO."""
        request, target = case.request, self._context.targets.get(case.request.slo_class, NO_TARGET).attainment
        if request.is_reserved or case.promise.is_protected or not self._context.admit_by_ttft:
            return None
        # By its id, so that a request that is held is not drawn for again each time that it is asked about.
        if admits_by_measure(request.attainment, target, zlib.crc32(request.request_id.encode())):
            return None
        reason = f"{request.attainment:.0%} of the requests let in keep their SLO, and predictions of it do not hold"
        return Rejection("overloaded", reason, _LATEST_S)

    def keeps(
        self, request: RequestShape, promise: Promise, option: Option, *, slowed_s: float = 0.0, room: float = 1.0
    ) -> bool:
        """Say whether an option has room and keeps every target, each with a share of `1 - room` to spare."""
        return (
            not option.full_s
            and option.ttft_s + self._ttft_margin_s(request, promise, option) <= room * promise.budget_s
            and option.tpot_s + slowed_s <= room * self.tpot_limit_s(request, promise, option)
        )

    def tpot_limit_s(self, request: RequestShape, promise: Promise, option: Option) -> float:
        """Tell the TPOT up to which a request may join; a protected one looks at protected classes' targets alone.

        There is a margin on what the rest of the batch adds to the request's own decoding, which is certain.
        """
        limit_s = promise.share * option.limit_s
        if promise.is_protected:
            limit_s = max(limit_s, min(promise.tpot_s, self._protected_tpot_s))
        pool, view = self._pools[option.decode_view.record.role], option.decode_view
        alone_s = pool.alone_s(request.prompt_tokens) * option.batch.factor
        if limit_s <= alone_s:
            return limit_s
        margin = _GROWTH_MARGIN
        if not promise.is_protected:
            spread, margins = view.speed.decode_spread or pool.decode_spread, request.margins
            # What came of predictions tells of growth too.
            margin = margin + spread if margins is None else max(margin, _over(spread, margins.tpot_high))
        return alone_s + (limit_s - alone_s) / (1.0 + margin)

    def _ttft_margin_s(self, request: RequestShape, promise: Promise, option: Option, *, edge: float = _EDGE) -> float:
        """Tell what waiting may take beyond its prediction: its interval, and what yet joins the step waited for.

        Prompts of one step end together; while one waits no more joins than comes meanwhile, or than a worker is given
        at once. Without waiting there is no margin. Protected requests are not refused for what is not known.
        """
        role = option.view.record.role
        waits_s = option.queue_s + option.blocks_s
        if not waits_s:
            return 0.0
        joining_s = min(option.wait_s, self._depth_s[role])
        if promise.is_protected:
            return joining_s
        spread, margins = option.view.speed.prefill_spread or self._pools[role].prefill_spread, request.margins
        if margins is None:
            return spread * waits_s + joining_s
        return max(_over(spread, margins.waiting_high, edge) * waits_s, joining_s)  # what came tells of what joins, too

    def _has_room(self, option: Option, promise: Promise) -> bool:
        """Say whether the workers take the request at once; of what is not theirs each tier leaves a share free."""
        if option.full_s or option.wait_s > promise.share * self._depth_s[option.view.record.role]:
            return False
        if promise.share == 1.0 or not option.decode_view.state.kv_blocks_total:
            return True
        batch, pool = option.batch, self._pools[option.decode_view.record.role].pool
        used = batch.context_tokens / (batch.context_tokens + max(batch.room_tokens, 1.0))
        return used <= promise.share and batch.seqs + 1 <= math.ceil(promise.share * pool.max_num_seqs)

    def _room_in_s(self, option: Option, promise: Promise) -> float:
        prompts_s = option.wait_s - promise.share * self._depth_s[option.view.record.role]
        return max(prompts_s, option.full_s)

    def _held(self, reason: str, case: Case, option: Option, room_in_s: float) -> Hold:
        request, promise, now_s = case.request, case.promise, case.now_s
        left_s = promise.latest_s - now_s
        again_s = max(_SOONEST_S, min(room_in_s, left_s if left_s > 0.0 else _LATEST_S, _LATEST_S))
        forecast = option.forecast(self._pools, request.margins)
        return Hold(reason, now_s + again_s, promise.key_s, forecast)

    def _too_late(self, case: Case, option: Option, ttft_s: float) -> Rejection:
        promise = case.promise
        least, most = _ms(option.ttft_s), _ms(ttft_s)
        reason = f"TTFT {least if least == most else f'{least} to {most}'} is the least predicted, {_left(promise)}"
        if option.prefill_s + option.first_step_s + option.transfer_s > promise.ttft_s:
            return Rejection("slo_infeasible", f"{reason}; the prompt alone takes longer")
        # A queue shrinks by one second each second; an equal request has all of its target before it. Of the interval
        # all that is above the prediction counts: who is told a time is to be in time when it comes.
        surely_s = self._ttft_margin_s(case.request, promise, option, edge=1.0)
        late_s = ttft_s + surely_s - self._ttft_margin_s(case.request, promise, option)
        return self._overloaded(case, option, reason, late_s - promise.ttft_s)

    def _too_slow(self, case: Case, option: Option, limit_s: float) -> Decision:
        """Hold what the batch has a place for in time, refuse the rest."""
        promise, now_s = case.promise, case.now_s
        pool = self._pools[option.decode_view.record.role]
        joined = pool.joined(option.batch, case.request.prompt_tokens, option.queue_s + option.prefill_s)
        recovery_s = pool.recovery_s(option.batch, joined, limit_s)
        is_in_time = option.ttft_s + recovery_s <= promise.budget_s
        if promise.is_best_effort and promise.latest_s > now_s and recovery_s < math.inf:
            is_in_time = True
        if self._context.may_hold and is_in_time:
            return self._held("the outputs in progress would be too slow", case, option, recovery_s)
        reason = f"TPOT {_ms(option.tpot_s)} is the least predicted, the target is {_ms(option.limit_s)}"
        if _ms(limit_s) != _ms(option.limit_s):
            reason += f", less a margin {_ms(limit_s)}"
        if recovery_s == math.inf and limit_s >= promise.tpot_s * promise.share:
            return Rejection("slo_infeasible", f"{reason}; a single output is no faster")
        spread, margins = option.decode_view.speed.decode_spread or pool.decode_spread, case.request.margins
        over = spread if margins is None else _over(spread, margins.tpot_high, 1.0)
        return self._overloaded(case, option, reason, min(recovery_s, option.batch.sequence_s) * (1.0 + over))

    def _overloaded(self, case: Case, option: Option, reason: str, drain_s: float) -> Rejection:
        """Name the time when what stands before an equal request is done, at the upper end of its interval.

        Those told before come first: their work is spread over a share of the capacity. Without a book of them times
        are spread over the drain itself, by request id.
        """
        roster, promised = case.roster, case.cluster.promised
        certain_s = max(drain_s, 0.0)
        promised_s = promised.tokens_before[-1] * self._per_token_s(roster) / _PROMISED_SHARE
        chance = zlib.crc32(case.request.request_id.encode()) / 2**32
        spread_s = max(certain_s, option.prefill_s / max(1, roster.num_senders or roster.num_receivers))
        earliest_s = max(certain_s + promised_s + chance * spread_s, _SOONEST_S)
        if earliest_s > _MOST_EARLIEST_S:
            return Rejection("overloaded", reason, _MOST_EARLIEST_S)
        return Rejection("overloaded", reason, earliest_s, earliest_s, CONFIDENCE)

    def _promised_s(self, case: Case) -> float:
        """Predict what the requests take that are due before this one must begin."""
        promised = case.cluster.promised
        return promised.tokens_before[bisect_left(promised.keys_s, case.promise.latest_s)] * self._per_token_s(
            case.roster
        )

    def _per_token_s(self, roster: Roster) -> float:
        """Tell the time that all workers together take for a prompt token."""
        if roster.num_senders:
            return self._pools[Role.PREFILL].s_per_prompt_token / roster.num_senders
        return self._pools[Role.DECODE].s_per_prompt_token / max(1, roster.num_receivers)


def _over(spread: float, high: float, edge: float = _EDGE) -> float:
    """Say how much longer than predicted a time may be, as a share of it, by `edge` of the interval above it."""
    return min(end_s(1.0, spread, edge * high) - 1.0, _MOST_OVER)


def _left(promise: Promise) -> str:
    if promise.budget_s < promise.ttft_s:
        return f"{_ms(max(0.0, promise.budget_s))} of the target of {_ms(promise.ttft_s)} are left"
    return f"the target is {_ms(promise.ttft_s)}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
