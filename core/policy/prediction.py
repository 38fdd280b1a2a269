"""When a request would get its first token and how fast the rest would follow, on given workers.

Owns the arithmetic of waiting, in seconds, from what a view tells: the worker's last frame, the router's own legs in
flight and how the worker's speed compares with its cost. Must not choose, and knows no output lengths but their mean.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from core.latency.step import Step, StepCost, attention_pairs
from core.policy.context import LinkFacts, PolicyContext, PoolFacts
from core.types import WorkerView

# A request of which only the number is known (another router sent it) counts as a prompt of middling length.
UNSEEN_PROMPT_TOKENS: Final = 256
_LEAST_MEAN_OUTPUT: Final = 8.0  # tokens; below it a batch would be predicted to empty itself within a step or two
_SIGMAS_OF_90_PERCENT: Final = 1.645  # half width of the central 90 % of a normal distribution


class Waiting(NamedTuple):
    """The prompts that a worker owes, as the time that is left of them: min(owed_s, free_at_s - now), at least 0."""

    owed_s: float
    free_at_s: float  # infinite when nothing says since when the worker is at them

    def left_s(self, now_s: float) -> float:
        """Predict the time until the last of them is computed."""
        left_s = min(self.owed_s, self.free_at_s - now_s)
        return left_s if left_s > 0.0 else 0.0


class Batch(NamedTuple):
    """A decode worker's batch and its steps, without the request that is asked about."""

    seqs: int  # on it or on their way to it
    running: int  # of them, that decode now
    context_tokens: int  # estimated
    room_tokens: float  # of KV that a new request may need; negative when the batch is full
    step_s: float  # of the batch as it is; of one sequence when there is none
    joined_s: float  # TPOT once a request without any context joined
    token_s: float  # and what each token of its context adds
    beside_s: float  # of joined_s, what the prompts computed there take from every token
    sequence_s: float  # mean time that a sequence spends there
    factor: float  # of its decode steps, see WorkerSpeed


class Joined(NamedTuple):
    """A decode worker's batch at the time when a new request joins it."""

    step_s: float  # of decoding alone
    tpot_s: float  # with the prompts that are computed beside it


def sequences(worker: WorkerView) -> int:
    """Count the requests on a worker: as it last said, or as this router knows, whichever is more."""
    said, own = worker.state.num_running + worker.state.num_waiting, worker.inflight_requests
    return own if own > said else said


def unseen_requests(worker: WorkerView) -> int:
    """Count the requests that other routers sent."""
    unseen = worker.state.num_running + worker.state.num_waiting - worker.inflight_requests
    return unseen if unseen > 0 else 0


def context_tokens(worker: WorkerView) -> int:
    """Estimate the KV tokens of a worker's requests: as it last said, or of the prompts on their way to it."""
    used, own = worker.state.kv_blocks_used * worker.hello.fingerprint.block_size, worker.inflight_context_tokens
    return own if own > used else used


class PoolForecast:
    """Predicts for the workers of one role; times that are asked for all the time are worked out once."""

    def __init__(self, pool: PoolFacts, cost: StepCost, *, mean_output_tokens: float = 128.0) -> None:
        """Take what is known of the pool; `cost` is that of the pool, known."""
        self.pool, self.cost = pool, cost
        self.stages = pool.stages
        self.mean_output = max(_LEAST_MEAN_OUTPUT, mean_output_tokens)
        self.prefill_spread = _SIGMAS_OF_90_PERCENT * pool.prefill_error
        self.decode_spread = _SIGMAS_OF_90_PERCENT * pool.decode_error
        self._max_batch = max(1, pool.max_num_seqs // pool.stages)  # of one stage
        batches = range(self._max_batch + 1)
        self._fixed_s = [cost.decode_fixed(batch) if batch else 0.0 for batch in batches]
        self._s_per_token = [cost.decode_context(batch) if batch else 0.0 for batch in batches]
        beside = cost.mixed_context or cost.decode_context
        self._beside_s_per_token = [beside(batch) if batch else 0.0 for batch in batches]
        self._dense_s: dict[int, float] = {}  # by tokens of a step, decoding ones among them; no more than one takes
        self._prompt_parts: dict[int, tuple[float, float]] = {}  # by the tokens of a step; no more than a step takes
        budget = max(1, pool.max_num_batched_tokens)
        self.batch_s = self.prompts_s(1, budget, attention_pairs(min(budget, UNSEEN_PROMPT_TOKENS)))
        self.s_per_prompt_token = self.batch_s / budget / pool.stages  # of a worker whose batches are full

    def prompt_s(self, tokens: int, cached: int = 0) -> float:
        """Predict the time of one prompt alone, of which `cached` tokens need not be computed; one always must."""
        uncached = tokens - cached
        if uncached < 1:
            if not tokens:
                return 0.0
            uncached, cached = 1, tokens - 1
        pairs = uncached * (cached + uncached / 2.0)
        parts = self._prompt_parts.get(uncached)
        if parts is None:
            return self.prompts_s(1, uncached, pairs)
        fixed_s, pair_s = parts
        return fixed_s + (pair_s * pairs + self.cost.prefill_seq_s)

    def waiting(self, worker: WorkerView) -> Waiting:
        """Predict the prompts that a prefill worker owes.

        Its requests of other routers count as prompts, for it runs nothing else.
        """
        prompts, tokens, pairs = worker.inflight_prompts, worker.inflight_prompt_tokens, worker.inflight_prompt_pairs
        unseen = unseen_requests(worker)
        if unseen:
            prompts, tokens = prompts + unseen, tokens + unseen * UNSEEN_PROMPT_TOKENS
            pairs += unseen * attention_pairs(UNSEEN_PROMPT_TOKENS)
        elif not prompts:
            return _NOTHING
        owed_s = self.prompts_s(prompts, tokens, pairs) / self.stages * worker.speed.prefill_factor
        return _waiting(worker, owed_s)

    def batch(self, worker: WorkerView) -> Batch:
        """Predict the decode steps of a worker, and what one more request makes of them."""
        state, factor, stages = worker.state, worker.speed.decode_factor, self.stages
        seqs, context = sequences(worker), context_tokens(worker)
        step_s = self._decode_s(seqs or 1, context) * factor
        after = -(-(seqs + 1) // stages)
        if after > self._max_batch:
            after = self._max_batch
        beside_s = 0.0
        if worker.inflight_prompts:
            beside_s = self._owed_s(worker) * worker.speed.prefill_factor / self.mean_output
        token_s = self._s_per_token[after] / stages * factor
        room = math.inf
        if state.kv_blocks_total:
            room = float(state.kv_blocks_total * worker.hello.fingerprint.block_size - context)
        if seqs >= self.pool.max_num_seqs:
            room = -1.0
        joined_s = self._fixed_s[after] * factor + token_s * context + beside_s
        running = state.num_running  # never more than seqs
        sequence_s = self.mean_output * (step_s + beside_s)
        return Batch(seqs, running, context, room, step_s, joined_s, token_s, beside_s, sequence_s, factor)

    def joined(self, batch: Batch, tokens: int, join_s: float) -> Joined:
        """Predict the steps with a new request of `tokens` that joins in `join_s`.

        Of those that decode now a share has finished by then, as many in a mean output's time as there are; those on
        their way are there by then.
        """
        step_s = self.joined_step_s(batch, tokens, join_s)
        return Joined(step_s, step_s + batch.beside_s)

    def joined_step_s(self, batch: Batch, tokens: int, join_s: float) -> float:
        """Predict the first part of `joined`, the step of decoding alone."""
        seqs, running, context, _, _, _, _, _, sequence_s, factor = batch
        after, tokens_there = seqs + 1.0, float(context + tokens)
        if running:
            gone = running * (join_s / sequence_s if join_s < sequence_s else 1.0)
            after = seqs - gone + 1.0
            tokens_there = context - context * gone / seqs + tokens
        if self.stages > 1:
            after, tokens_there = after / self.stages, tokens_there / self.stages
        if after > self._max_batch:
            after = float(self._max_batch)
        elif after < 1.0:
            after = 1.0
        lower = int(after)
        step_s = self._fixed_s[lower] + self._s_per_token[lower] * tokens_there
        if after > lower:  # an expected number of sequences may lie between two
            upper_s = self._fixed_s[lower + 1] + self._s_per_token[lower + 1] * tokens_there
            step_s += (after - lower) * (upper_s - step_s)
        return step_s * factor

    def alone_s(self, tokens: int) -> float:
        """Time the decode steps of one sequence of `tokens` with no other beside it."""
        return self._fixed_s[1] + self._s_per_token[1] * tokens / self.stages

    def blocks_s(self, batch: Batch, tokens: int) -> float:
        """Predict the wait until a batch and its KV blocks have room for a request of `tokens`.

        Sequences end, and their blocks become free, evenly over the mean time that one spends there.
        """
        if tokens < batch.room_tokens:
            return 0.0
        if batch.room_tokens < 0.0 and batch.seqs >= self.pool.max_num_seqs:
            return (batch.seqs + 1 - self.pool.max_num_seqs) / max(1, batch.seqs) * batch.sequence_s
        return (tokens - batch.room_tokens + 1.0) / max(1, batch.context_tokens) * batch.sequence_s

    def recovery_s(self, batch: Batch, joined: Joined, limit_s: float) -> float:
        """Predict when enough sequences have ended for `joined` to be within `limit_s`; infinite: never."""
        excess_s = joined.tpot_s - limit_s
        if excess_s <= 0.0:
            return 0.0
        alone_s = self._fixed_s[1] * batch.factor
        falls_s = joined.tpot_s - alone_s  # all of it, when every sequence has ended
        return excess_s / falls_s * batch.sequence_s if excess_s < falls_s else math.inf

    def whole_s(self, worker: WorkerView, batch: Batch, tokens: int, cached: int, now_s: float) -> tuple[float, float]:
        """Predict (until its prompt is begun, its prompt) of a request that runs whole where others may decode."""
        decoding = max(0, batch.seqs - worker.inflight_prompts) // self.stages
        if decoding > self._max_batch:
            decoding = self._max_batch
        context = batch.context_tokens // self.stages
        factor, uncached = worker.speed.prefill_factor, tokens - cached
        if uncached < 1:
            uncached = 1 if tokens else 0
        pairs = uncached * (cached + uncached / 2.0)
        if not self.pool.chunked:
            own_s = self.prompts_s(1, uncached, pairs) * factor
        else:
            own_s = self.prompts_s(1, uncached, pairs, decoding, context) * factor
        if worker.inflight_prompts:
            owed_s = self._owed_s(worker, decoding, context) if self.pool.chunked else self._owed_s(worker)
            return _waiting(worker, owed_s / self.stages * factor).left_s(now_s), own_s
        # Of the decode step under way half is left on average.
        step_s = self._fixed_s[decoding] + self._s_per_token[decoding] * context
        return step_s / 2.0 * worker.speed.decode_factor, own_s

    def _decode_s(self, seqs: int, context: int) -> float:
        batch = -(-seqs // self.stages)
        if batch > self._max_batch:
            batch = self._max_batch
        return self._fixed_s[batch] + self._s_per_token[batch] * context / self.stages

    def _owed_s(self, worker: WorkerView, decoding: int = 0, context: int = 0) -> float:
        """Time all prompts that a worker owes this router."""
        return self.prompts_s(
            worker.inflight_prompts, worker.inflight_prompt_tokens, worker.inflight_prompt_pairs, decoding, context
        )

    def prompts_s(self, prompts: int, tokens: int, pairs: float, decoding: int = 0, context: int = 0) -> float:
        """Time prompts that are computed in as few steps as their tokens allow, beside `decoding` sequences."""
        if not decoding and 0 < tokens <= self.pool.max_num_batched_tokens:
            fixed_s, pair_s = self._prompt_parts.get(tokens) or self._work_out(tokens)
            return fixed_s + (pair_s * pairs + self.cost.prefill_seq_s * prompts)
        if 0 < tokens <= self.pool.max_num_batched_tokens - decoding:
            return self._mixed_s(prompts, tokens, pairs, decoding, context)
        steps = max(1, math.ceil(tokens / max(1, self.pool.max_num_batched_tokens - decoding)))
        if steps == 1:
            return self.cost.seconds(Step(tokens, prompts, pairs, decoding, context))
        share = Step(round(tokens / steps), math.ceil(prompts / steps), pairs / steps, decoding, context)
        return steps * self.cost.seconds(share)

    def _mixed_s(self, prompts: int, tokens: int, pairs: float, decoding: int, context: int) -> float:
        """Time one step of prompts beside decoding sequences: StepCost.seconds, of tables looked up once."""
        _, pair_s = self._prompt_parts.get(tokens) or self._work_out(tokens)
        time_s = self._fixed_s[decoding] + self._beside_s_per_token[decoding] * context
        time_s += self._dense(tokens + decoding) - self._dense(decoding)
        return time_s + (pair_s * pairs + self.cost.prefill_seq_s * prompts)

    def _dense(self, tokens: int) -> float:
        time_s = self._dense_s.get(tokens)
        if time_s is None:
            time_s = self._dense_s[tokens] = self.cost.dense(tokens)
        return time_s

    def _work_out(self, tokens: int) -> tuple[float, float]:
        """Reckon what a step of `tokens` takes without pairs, and for each pair."""
        parts = self._prompt_parts[tokens] = (self.cost.seconds(Step(tokens)), self.cost.pair(tokens))
        return parts


def transfer_s(link: LinkFacts, tokens: int, prompt_s: float) -> float:
    """Predict how long the KV of `tokens` is on its way once the prompt, in `prompt_s`, is computed."""
    wire_s = tokens * link.s_per_token
    last_s, rest_s = link.tail_share * wire_s, wire_s - (prompt_s if link.tail_share < 1.0 else 0.0)
    return link.latency_s + (last_s if last_s > rest_s else rest_s)


def handover_s(context: PolicyContext, *, is_decoding: bool, step_s: float) -> float:
    """Predict what a pair's TTFT has beyond prompt and transfer: the fixed parts and the first decode step."""
    if context.first_token_from_prefill:
        return context.request_overhead_s
    # On average the first decode step waits for half of the one under way.
    steps = 1.5 if is_decoding else 1.0
    return context.request_overhead_s + context.handover_overhead_s + steps * step_s


def spread(prefill_s: float, prefill_spread: float, other_s: float, other_spread: float) -> float:
    """Combine the spreads of two independent parts of a time, as a share of their sum."""
    total_s = prefill_s + other_s
    return math.hypot(prefill_s * prefill_spread, other_s * other_spread) / total_s if total_s > 0.0 else 0.0


_NOTHING: Final = Waiting(0.0, 0.0)


def _waiting(worker: WorkerView, owed_s: float) -> Waiting:
    """Count from when the worker came to the first of the prompts it owes; with nothing to tell that, all is left."""
    since_s = worker.prompting_since_s
    return Waiting(owed_s, math.inf if since_s is None else since_s + owed_s)
