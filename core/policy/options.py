"""The ways to serve a request, with what is predicted of each: the best pair, and the best workers to run it whole.

Owns the search. Must not know admission: what is done with an option is core.policy.slo_aware's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from core.policy.context import PolicyContext
from core.policy.interval import ends_s
from core.policy.prediction import Batch, PoolForecast, handover_s, spread, transfer_s
from core.policy.promise import Promise
from core.policy.roster import Group, Receivers, Roster, Senders
from core.types import WAITING_SHARE, Forecast, Margins, Role, WorkerView

BEST_PAIR: Final = "least predicted TTFT"
# A cached prompt leaves time to the requests behind; so much of it counts beside what the request itself gains ...
_AFFINITY: Final = 0.5
# ... unless the worker's queue is beyond so much of the mean, and of the own prompt's time.
_HOT_SHARE: Final = 1.5
_HOT_OWN: Final = 0.5
_FULL: Final = 1e6  # beyond every share of a target
_MOST_EXACT: Final = 8  # up to so many workers are all predicted in full; else the best by columns


class Option(NamedTuple):
    """One way to serve a request; times as in core.types.Forecast."""

    decode: str
    prefill: str | None
    reason: str
    queue_s: float
    prefill_s: float
    transfer_s: float
    blocks_s: float
    first_step_s: float
    tpot_s: float
    ttft_s: float
    limit_s: float  # the TPOT that keeps its own target and those of the requests there
    wait_s: float  # of queue_s, what the worker itself owes
    ahead_s: float  # of queue_s, what held requests take that go before it
    full_s: float  # until the decode worker has room, however long the prompt takes; 0: it has
    view: WorkerView  # that computes the prompt
    batch: Batch  # of the worker that decodes
    decode_view: WorkerView

    def if_it_goes(self) -> Option:
        """Leave out what held requests would take: one that goes now is before them on its worker."""
        return self._replace(queue_s=self.queue_s - self.ahead_s) if self.ahead_s else self

    def forecast(self, pools: Mapping[Role, PoolForecast], margins: Margins | None) -> Forecast:
        """Write down the prediction with its interval."""
        prompting, decoding = pools[self.view.record.role], pools[self.decode_view.record.role]
        prefill_spread = self.view.speed.prefill_spread or prompting.prefill_spread
        tpot_spread = self.decode_view.speed.decode_spread or decoding.decode_spread
        prompts_s, rest_s = self.queue_s + self.prefill_s, self.transfer_s + self.blocks_s + self.first_step_s
        ttft_spread = spread(prompts_s, prefill_spread, rest_s, tpot_spread)
        ttft_s, tpot_s = prompts_s + rest_s, self.tpot_s
        if margins is None:
            first, token = _claimed_s(ttft_s, ttft_spread), _claimed_s(tpot_s, tpot_spread)
        else:
            low, high, waiting_low, waiting_high, tpot_low, tpot_high = margins
            if self.queue_s + self.blocks_s > WAITING_SHARE * ttft_s:  # Forecast.waits
                low, high = waiting_low, waiting_high
            first, token = ends_s(ttft_s, ttft_spread, low, high), ends_s(tpot_s, tpot_spread, tpot_low, tpot_high)
        return Forecast(
            self.queue_s, self.prefill_s, self.transfer_s, self.blocks_s, self.first_step_s, tpot_s,
            ttft_spread, tpot_spread, *first, *token,
        )  # fmt: skip


class Asked(NamedTuple):
    """A request as the search sees it."""

    tokens: int
    cached: tuple[tuple[str, int], ...]
    promise: Promise
    ahead_s: float = 0.0  # that the requests held before it will take of each worker's time
    beside_s: float = 0.0  # and those that join its step, if it waits for one


class Options:
    """Finds and predicts options."""

    def __init__(self, context: PolicyContext, pools: Mapping[Role, PoolForecast]) -> None:
        """Take link, overheads and the costs of both roles."""
        self._context = context
        self._pools = pools
        self._sending, self._receiving = pools[Role.PREFILL], pools[Role.DECODE]

    def pairs(self, asked: Asked, roster: Roster, now_s: float, *, width: int) -> list[Option]:
        """Predict the `width` best prefill workers with the `width` best decode workers of each fingerprint."""
        found = []
        for group in roster.groups:
            if not group.senders.ids or not group.receivers.ids:
                continue
            prompts = self._prompt_scores(asked, group.senders, now_s)
            joins = self._join_scores(asked, group.receivers)
            receiving = _least(joins, width)
            for sender in _least(prompts, width):
                wait_s = group.senders.wait_s(sender, now_s)
                found += [self._pair(asked, group, sender, wait_s, slot) for slot in receiving]
        return found

    def best_pair(self, asked: Asked, roster: Roster, now_s: float) -> Option | None:
        """Find the pair under the least strain; None when no two workers have equal fingerprints.

        Both parts of the strain are least where each worker's own score is; fingerprints are what is compared.
        """
        best = None
        for group in roster.groups:
            senders, receivers = group.senders, group.receivers
            if not senders.ids or not receivers.ids:
                continue
            prompts, joins = self._prompt_scores(asked, senders, now_s), self._join_scores(asked, receivers)
            sender, receiver = prompts.index(min(prompts)), joins.index(min(joins))
            pair = self._pair(asked, group, sender, senders.wait_s(sender, now_s), receiver)
            if best is None or strain(pair, asked.promise) < strain(best, asked.promise):
                best = pair
        return best

    def wholes(
        self, asked: Asked, roster: Roster, reason: str, now_s: float, *, width: int = _MOST_EXACT
    ) -> list[Option]:
        """Predict the request whole on the best decode workers; on prefill workers when there are no others."""
        found = []
        for group in roster.groups:
            receivers = group.receivers
            if receivers.ids:
                slots = self._whole_slots(asked, receivers, width)
                found += [self.whole(asked, receivers.views[s], receivers.batches[s], reason, now_s) for s in slots]
            elif not roster.num_receivers:
                batches = [(view, self._sending.batch(view)) for view in group.senders.views]
                found += [self.whole(asked, view, batch, reason, now_s) for view, batch in batches]
        return found

    def _prompt_scores(self, asked: Asked, senders: Senders, now_s: float) -> list[float]:
        """Score prefill workers: when the prompt is computed there, less what a cached prefix saves the others."""
        own_s = self._sending.prompt_s(asked.tokens)
        scores = senders.ready_s(own_s, now_s)
        hot_s, priced, saved_s = -1.0, 0, 0.0
        for name, cached in asked.cached:
            slot = senders.slots.get(name)
            if slot is None:
                continue
            if hot_s < 0.0:
                mean_s = (sum(scores) - own_s * sum(senders.factors)) / len(scores)
                hot_s = _HOT_SHARE * mean_s + _HOT_OWN * own_s
            if cached != priced:  # several workers often know the same beginning
                priced, saved_s = cached, own_s - self._sending.prompt_s(asked.tokens, cached)
            is_hot = senders.wait_s(slot, now_s) > hot_s
            scores[slot] -= (1.0 if is_hot else 1.0 + _AFFINITY) * saved_s * senders.factors[slot]
        return scores

    def _join_scores(self, asked: Asked, receivers: Receivers) -> list[float]:
        """Score decode workers: TPOT as a share of the tightest target that it must keep."""
        tokens, own_s = asked.tokens, asked.promise.weigh_tpot_s
        if tokens < receivers.least_room_tokens and own_s <= receivers.least_tightest_s:  # as below, the common case
            scores = [
                (joined_s + token_s * tokens) / own_s
                for joined_s, token_s in zip(receivers.joined_s, receivers.token_s, strict=True)
            ]
        else:
            scores = self._tight_scores(tokens, own_s, receivers)
        # What hides behind prefill costs the link all the same.
        share = self._context.link.s_per_token / asked.promise.weigh_ttft_s
        if share:
            for name, cached in asked.cached:
                slot = receivers.slots.get(name)
                if slot is not None:
                    scores[slot] -= min(cached, tokens) * share
        return scores

    @staticmethod
    def _tight_scores(tokens: int, own_s: float, receivers: Receivers) -> list[float]:
        return [
            (joined_s + token_s * tokens) / (own_s if own_s < tight_s else tight_s) + (0.0 if tokens < room else _FULL)
            for joined_s, token_s, room, tight_s in zip(
                receivers.joined_s, receivers.token_s, receivers.room_tokens, receivers.tightest_s, strict=True
            )
        ]

    def _pair(self, asked: Asked, group: Group, sender: int, wait_s: float, receiver: int) -> Option:
        senders, receivers, tokens = group.senders, group.receivers, asked.tokens
        view, decode_view, batch = senders.views[sender], receivers.views[receiver], receivers.batches[receiver]
        prefill, decode = senders.ids[sender], receivers.ids[receiver]
        on_prefill = on_decode = 0
        if asked.cached:
            on_prefill, on_decode = _cached_on(asked, prefill), _cached_on(asked, decode)
        queue_s = wait_s + asked.ahead_s + asked.beside_s if wait_s else asked.ahead_s
        prefill_s = self._sending.prompt_s(tokens, on_prefill) * senders.factors[sender]
        sent_s = transfer_s(self._context.link, tokens - on_decode if tokens > on_decode else 0, prefill_s)
        receiving = self._receiving
        # Blocks are asked for when the prompt is sent, so its time in the queue counts for that wait, too.
        full_s = receiving.blocks_s(batch, tokens) if tokens >= batch.room_tokens else 0.0
        blocks_s = full_s - queue_s if full_s > queue_s else 0.0
        step_s = receiving.joined_step_s(
            batch, tokens, _until_joined_s(asked.promise, wait_s, queue_s) + blocks_s + prefill_s
        )
        first_s = handover_s(self._context, is_decoding=batch.running > 0, step_s=step_s)
        ttft_s = queue_s + prefill_s + sent_s + blocks_s + first_s
        own_s, tight_s = asked.promise.tpot_s, receivers.tightest_s[receiver]
        return Option(
            decode, prefill, BEST_PAIR, queue_s, prefill_s, sent_s, blocks_s, first_s,
            step_s + batch.beside_s, ttft_s, own_s if own_s < tight_s else tight_s, wait_s, asked.ahead_s, full_s,
            view, batch, decode_view,
        )  # fmt: skip

    def whole(self, asked: Asked, view: WorkerView, batch: Batch, reason: str, now_s: float) -> Option:
        """Predict the request whole on one worker, of which `batch` is what is predicted whatever the request."""
        pool, name = self._pools[view.record.role], view.record.worker_id
        wait_s, prefill_s = pool.whole_s(view, batch, asked.tokens, _cached_on(asked, name), now_s)
        return self._whole(asked, view, batch, reason, wait_s, prefill_s)

    def sooner_whole(self, asked: Asked, pair: Option, reason: str, now_s: float) -> Option | None:
        """Predict the request whole where a pair would decode it; None when that is no sooner."""
        view, batch = pair.decode_view, pair.batch
        cached = _cached_on(asked, pair.decode)
        wait_s, prefill_s = self._receiving.whole_s(view, batch, asked.tokens, cached, now_s)
        if wait_s + asked.ahead_s + prefill_s + self._context.request_overhead_s >= pair.ttft_s:
            return None  # whatever it waits for blocks
        whole = self._whole(asked, view, batch, reason, wait_s, prefill_s)
        return whole if whole.ttft_s < pair.ttft_s else None

    def _whole(
        self, asked: Asked, view: WorkerView, batch: Batch, reason: str, wait_s: float, prefill_s: float
    ) -> Option:
        pool, tokens, queue_s = self._pools[view.record.role], asked.tokens, wait_s + asked.ahead_s
        full_s = pool.blocks_s(batch, tokens) if tokens >= batch.room_tokens else 0.0
        blocks_s = full_s - queue_s if full_s > queue_s else 0.0
        step_s = pool.joined_step_s(
            batch, tokens, _until_joined_s(asked.promise, wait_s, queue_s) + blocks_s + prefill_s
        )
        first_s = self._context.request_overhead_s
        ttft_s = queue_s + prefill_s + blocks_s + first_s
        limit_s, tight_s = asked.promise.tpot_s, view.tightest_tpot_s
        if tight_s is not None and tight_s < limit_s:
            limit_s = tight_s
        return Option(
            view.record.worker_id, None, reason, queue_s, prefill_s, 0.0, blocks_s, first_s,
            step_s + batch.beside_s, ttft_s, limit_s, wait_s, asked.ahead_s, full_s, view, batch, view,
        )  # fmt: skip

    def _whole_slots(self, asked: Asked, receivers: Receivers, width: int) -> Iterable[int]:
        if len(receivers.ids) <= width:
            return range(len(receivers.ids))
        scores = self._join_scores(asked, receivers)
        per_s = self._receiving.mean_output / asked.promise.weigh_ttft_s
        return _least([s + b.beside_s * per_s for s, b in zip(scores, receivers.batches, strict=True)], width)

    def slowed_s(self, asked: Asked, option: Option) -> float:
        """Reckon what a whole request's prompt takes from each output token that is made beside it."""
        cached = _cached_on(asked, option.decode)
        pool = self._pools[option.view.record.role]
        return pool.prompt_s(asked.tokens, cached) * option.view.speed.prefill_factor / pool.mean_output

    def stall_s(self, asked: Asked) -> float:
        """Reckon how long outputs stand still, at most, for a step of the prompt on an average decode worker."""
        most = self._receiving.pool.max_num_batched_tokens
        return self._receiving.prompt_s(asked.tokens if asked.tokens < most else most)


def strain(option: Option, promise: Promise) -> tuple[float, str, str]:
    """Order options: both parts as shares of their targets; ties go to lesser ids."""
    limit_s = min(promise.weigh_tpot_s, option.limit_s)
    share = option.ttft_s / promise.weigh_ttft_s + option.tpot_s / limit_s
    full = _FULL if option.full_s else 0.0
    return share + full, option.decode, option.prefill or ""


def _claimed_s(predicted_s: float, spread: float) -> tuple[float, float]:
    """Place the ends where the spread says."""
    return max(0.0, predicted_s - predicted_s * spread), predicted_s + predicted_s * spread


def _until_joined_s(promise: Promise, wait_s: float, queue_s: float) -> float:
    """Tell what time a request's batch has to become emptier until it joins.

    To one that gives way those held before it do not count: they will be in that batch, and whoever has the most time
    to wait would find the emptiest.
    """
    return wait_s if promise.gives_way else queue_s


def _cached_on(asked: Asked, worker_id: str) -> int:
    found = 0
    for name, tokens in asked.cached:
        if name == worker_id:
            found = tokens
    return found


def _least(scores: list[float], count: int) -> list[int]:
    """Find the slots of the least scores, best first; of equal ones the lesser slots."""
    best = scores.index(min(scores))
    if count == 1 or len(scores) == 1:
        return [best]
    if count == 2:
        left = scores.copy()
        left[best] = math.inf
        return [best, left.index(min(left))]
    return sorted(range(len(scores)), key=scores.__getitem__)[:count]
