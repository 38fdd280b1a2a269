"""What the router predicts of a worker, from what it has sent there and the frames it has seen; no output lengths.

The mean output length that predictions need is learnt from the requests that have ended.
"""

from __future__ import annotations

from sim.kernel.compiled import compiled
from sim.kernel.handover import wire_time_s
from sim.kernel.prefixes import cached_tokens
from sim.kernel.state import DONE, DONE_TOKENS, State

_FIRST_OUTPUT_GUESS = 128.0  # tokens, until a request has ended


@compiled
def lanes_of(st: State, worker: int) -> int:
    """Count the lanes of a worker."""
    return st.workers.first_lane[worker + 1] - st.workers.first_lane[worker]


@compiled
def prompts_s(st: State, pool: int, tokens: int, pairs: float, seqs: int, beside: int) -> float:
    """Return the time of steps that compute `tokens` prompt tokens in all, beside `beside` decoding sequences."""
    pools = st.pools
    budget = max(1, pools.budget[pool] - beside)
    base_s = st.tokens.dense[pool, beside] if beside else 0.0
    full, rest = tokens // budget, tokens % budget
    time_s = full * (st.tokens.dense[pool, budget + beside] - base_s) + pools.prefill_seq_s[pool] * seqs
    if rest:
        time_s += st.tokens.dense[pool, rest + beside] - base_s
    return time_s + st.tokens.pair[pool, min(tokens, budget)] * pairs


@compiled
def step_left_s(st: State, worker: int, now_s: float) -> float:
    """Return the time until one of the worker's lanes is free."""
    left_s = 1e300
    for lane in range(st.workers.first_lane[worker], st.workers.first_lane[worker + 1]):
        left_s = min(left_s, st.lanes.step_until[lane] - now_s if st.lanes.busy[lane] else 0.0)
    return left_s


@compiled
def _tokens_in_steps(st: State, worker: int) -> int:
    tokens = 0
    for lane in range(st.workers.first_lane[worker], st.workers.first_lane[worker + 1]):
        if st.lanes.busy[lane]:
            tokens += st.lanes.step_tokens[lane]
    return tokens


@compiled
def prefill_s(st: State, worker: int, request: int, now_s: float) -> float:
    """Predict the time until a prompt sent to `worker` is computed, if nothing decodes there."""
    return _prompt_ready_s(st, worker, request, now_s, 0)


@compiled
def _prompt_ready_s(st: State, worker: int, request: int, now_s: float, beside: int) -> float:
    workers = st.workers
    pool = workers.pool[worker]
    total = st.reqs.prompt[request] + st.reqs.made[request]
    cached = cached_tokens(st, worker, request)
    tokens = total - cached
    owed = workers.owed_tokens[worker]
    queued = max(0, owed - _tokens_in_steps(st, worker))
    queued_pairs = workers.owed_pairs[worker] * queued / owed if owed else 0.0
    lanes = lanes_of(st, worker)
    left_s = step_left_s(st, worker, now_s)
    if lanes > 1:
        left_s += prompts_s(st, pool, queued, queued_pairs, 0, beside) / lanes
        queued, queued_pairs = 0, 0.0
    pairs = queued_pairs + tokens * (cached + tokens / 2.0)
    return left_s + prompts_s(st, pool, queued + tokens, pairs, 1, beside)


@compiled
def whole_s(st: State, worker: int, request: int, now_s: float) -> float:
    """Predict the time to first token of a request that runs whole on `worker`, beside what decodes there."""
    pool, workers = st.workers.pool[worker], st.workers
    lanes = lanes_of(st, worker)
    beside = max(0, workers.load_seqs[worker] - workers.owed_requests[worker]) // lanes
    beside = min(beside, st.pools.max_seqs[pool] - 1)
    if beside == 0 or not st.pools.chunked[pool]:
        return _prompt_ready_s(st, worker, request, now_s, 0)
    ready_s = _prompt_ready_s(st, worker, request, now_s, beside)
    tokens = workers.owed_tokens[worker] + st.reqs.prompt[request]
    steps = tokens // max(1, st.pools.budget[pool] - beside) + 1
    step_s = st.seqs.fixed[pool, beside] + st.seqs.context[pool, beside] * workers.load_context[worker] / lanes
    return ready_s + steps * step_s


@compiled
def tpot_s(st: State, worker: int, request: int, prompts: float) -> float:
    """Predict the time per output token of a request that decodes on `worker` with all that is sent there.

    `prompts` is the time that prompts will take from decode steps there; a token's share of it is by the mean output.
    """
    pool, workers = st.workers.pool[worker], st.workers
    lanes = lanes_of(st, worker)
    seqs = min((workers.load_seqs[worker] + lanes) // lanes, st.pools.max_seqs[pool])
    context_tokens = (workers.load_context[worker] + st.reqs.prompt[request]) / lanes
    step_s = st.seqs.fixed[pool, seqs] + st.seqs.context[pool, seqs] * context_tokens
    return step_s + prompts / mean_output(st)


@compiled
def mean_output(st: State) -> float:
    """Return the mean output length of the requests that have ended, in tokens."""
    return (st.counts[DONE_TOKENS] + 8.0 * _FIRST_OUTPUT_GUESS) / (st.counts[DONE] + 8.0)


@compiled
def owed_s(st: State, worker: int) -> float:
    """Return the time that the prompts sent to `worker` still take."""
    workers = st.workers
    return prompts_s(st, workers.pool[worker], workers.owed_tokens[worker], workers.owed_pairs[worker], 0, 0)


@compiled
def pair_s(st: State, prefill: int, decode: int, request: int, now_s: float) -> float:
    """Predict the time to first token of a hand-over from `prefill` to `decode`."""
    rules = st.rules
    ttft_s = prefill_s(st, prefill, request, now_s) + rules.request_overhead_s
    if rules.token_from_prefill:
        return ttft_s
    tail_s = rules.tail_share * wire_time_s(st, st.reqs.prompt[request]) + rules.link_latency_s
    # On average the first decode step waits for half of the one under way.
    return ttft_s + tail_s + rules.handover_overhead_s + 1.5 * tpot_s(st, decode, request, 0.0)


@compiled
def is_full(st: State, worker: int, request: int) -> bool:
    """Say whether the KV of all that is sent to `worker` and of one more fills it."""
    pool = st.workers.pool[worker]
    tokens = st.workers.load_context[worker] + st.reqs.prompt[request] + mean_output(st) / 2.0
    held = st.workers.load_seqs[worker] + 1
    capacity = st.pools.kv_blocks[pool] * st.rules.block_size
    return tokens > capacity or held > st.pools.max_seqs[pool] * lanes_of(st, worker)
