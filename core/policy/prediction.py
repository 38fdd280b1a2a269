"""When a request would get its first token and how fast the rest would follow, on given workers.

Owns the arithmetic of waiting, in seconds, from what a view tells: the worker's last frame and the router's own legs
in flight. Must not choose, and knows no output lengths.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from core.latency.step import Step, attention_pairs
from core.policy.context import LinkFacts, PolicyContext, PoolFacts
from core.types import WorkerView

# A request of which only the number is known (another router sent it) counts as a prompt of middling length.
UNSEEN_PROMPT_TOKENS: Final = 256
# Over so many output tokens a decode batch spreads the time that prompts take from it; chats answer in 100-200 tokens
# (Azure 2023 conversations: 211 on average).
OUTPUT_TOKENS: Final = 128


class DecodeForecast(NamedTuple):
    """A decode worker's batch when one more request has joined."""

    has_room: bool  # in KV blocks and in the batch
    step_s: float  # of decoding alone
    tpot_s: float  # with the prompts that are computed beside it


def sequences(worker: WorkerView) -> int:
    """Count the requests on a worker: as it last said, or as this router knows, whichever is more."""
    said, own = worker.state.num_running + worker.state.num_waiting, worker.inflight_requests
    return own if own > said else said


def unseen_requests(worker: WorkerView) -> int:
    """Count the requests that other routers sent."""
    return max(0, worker.state.num_running + worker.state.num_waiting - worker.inflight_requests)


def context_tokens(worker: WorkerView) -> int:
    """Estimate the KV tokens of a worker's requests: as it last said, or of the prompts on their way to it."""
    used, own = worker.state.kv_blocks_used * worker.hello.fingerprint.block_size, worker.inflight_context_tokens
    return own if own > used else used


class PoolForecast:
    """Predicts for the workers of one role; times that are asked for all the time are worked out once."""

    def __init__(self, pool: PoolFacts) -> None:
        """Take what is known of the pool."""
        self._pool = pool
        self._stages = pool.stages
        self._max_batch = max(1, pool.max_num_seqs // pool.stages)  # of one stage
        cost, batches = pool.cost, range(self._max_batch + 1)
        self._fixed_s = [cost.decode_fixed(batch) if batch else 0.0 for batch in batches]
        self._s_per_token = [cost.decode_context(batch) if batch else 0.0 for batch in batches]
        self._prompt_parts: dict[int, tuple[float, float]] = {}  # by the tokens of a step; no more than a step takes

    def prompt_s(self, tokens: int) -> float:
        """Predict the time of one prompt alone."""
        return self._pool.cost.prefill_s(tokens)

    def prefill_wait_s(self, worker: WorkerView, now_s: float) -> float:
        """Predict the time until a prefill worker has computed all the prompts it owes.

        Its requests of other routers count as prompts, for it runs nothing else.
        """
        prompts, tokens, pairs = worker.inflight_prompts, worker.inflight_prompt_tokens, worker.inflight_prompt_pairs
        unseen = unseen_requests(worker)
        if unseen:
            prompts, tokens = prompts + unseen, tokens + unseen * UNSEEN_PROMPT_TOKENS
            pairs += unseen * attention_pairs(UNSEEN_PROMPT_TOKENS)
        elif not prompts:
            return 0.0
        return max(0.0, self._prompts_s(prompts, tokens, pairs) / self._stages - _elapsed_s(worker, now_s))

    def whole_ttft_s(self, worker: WorkerView, tokens: int, now_s: float) -> float:
        """Predict the time until a worker that also decodes has computed a new prompt of `tokens`."""
        decoding = min(max(0, sequences(worker) - worker.inflight_prompts) // self._stages, self._max_batch)
        context = context_tokens(worker) // self._stages
        beside = (decoding, context) if self._pool.chunked else (0, 0)
        own_s = self._prompts_s(1, tokens, attention_pairs(tokens), *beside)
        if worker.inflight_prompts:
            owed_s = self._owed_s(worker, *beside) / self._stages
            return max(0.0, owed_s - _elapsed_s(worker, now_s)) + own_s
        # Of the decode step under way half is left on average.
        return own_s + self._decode_s(decoding, context) / 2.0

    def decode(self, worker: WorkerView, tokens: int) -> DecodeForecast:
        """Predict the decode steps with a new request of `tokens` in the batch."""
        batch = sequences(worker) + 1
        context = context_tokens(worker) + tokens
        capacity = worker.state.kv_blocks_total * worker.hello.fingerprint.block_size
        has_room = batch <= self._pool.max_num_seqs and (not capacity or context < capacity)
        step_s = self._decode_s(min(-(-batch // self._stages), self._max_batch), context / self._stages)
        if not worker.inflight_prompts:
            return DecodeForecast(has_room, step_s, step_s)
        return DecodeForecast(has_room, step_s, step_s + self._owed_s(worker) / OUTPUT_TOKENS)

    def _decode_s(self, batch: int, context: float) -> float:
        return self._fixed_s[batch] + self._s_per_token[batch] * context

    def _owed_s(self, worker: WorkerView, decoding: int = 0, context: int = 0) -> float:
        """Time all prompts that a worker owes this router."""
        return self._prompts_s(
            worker.inflight_prompts, worker.inflight_prompt_tokens, worker.inflight_prompt_pairs, decoding, context
        )

    def _prompts_s(self, prompts: int, tokens: int, pairs: float, decoding: int = 0, context: int = 0) -> float:
        """Time prompts that are computed in as few steps as their tokens allow, beside `decoding` sequences."""
        if not decoding and 0 < tokens <= self._pool.max_num_batched_tokens:
            fixed_s, pair_s = self._prompt_parts.get(tokens) or self._work_out(tokens)
            return fixed_s + (pair_s * pairs + self._pool.cost.prefill_seq_s * prompts)
        steps = max(1, math.ceil(tokens / max(1, self._pool.max_num_batched_tokens - decoding)))
        seconds = self._pool.cost.seconds
        if steps == 1:
            return seconds(Step(tokens, prompts, pairs, decoding, context))
        share = Step(round(tokens / steps), math.ceil(prompts / steps), pairs / steps, decoding, context)
        return steps * seconds(share)

    def _work_out(self, tokens: int) -> tuple[float, float]:
        """Reckon what a step of `tokens` takes without pairs, and for each pair."""
        cost = self._pool.cost
        parts = self._prompt_parts[tokens] = (cost.seconds(Step(tokens)), cost.pair(tokens))
        return parts


def transfer_s(link: LinkFacts, tokens: int, prompt_s: float) -> float:
    """Predict how long the KV of `tokens` is on its way once the prompt, in `prompt_s`, is computed."""
    wire_s = tokens * link.s_per_token
    hidden_s = prompt_s if link.tail_share < 1.0 else 0.0
    return link.latency_s + max(link.tail_share * wire_s, wire_s - hidden_s)


def handover_s(context: PolicyContext, worker: WorkerView, forecast: DecodeForecast) -> float:
    """Predict what a pair's TTFT has beyond prompt and transfer: the fixed parts and the first decode step."""
    if context.first_token_from_prefill:
        return context.request_overhead_s
    # On average the first decode step waits for half of the one under way.
    steps = 1.5 if worker.state.num_running else 1.0
    return context.request_overhead_s + context.handover_overhead_s + steps * forecast.step_s


def _elapsed_s(worker: WorkerView, now_s: float) -> float:
    """Tell how long the worker has been at the first of the prompts it owes."""
    return 0.0 if worker.prompting_since_s is None else max(0.0, now_s - worker.prompting_since_s)
