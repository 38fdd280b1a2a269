"""Engine steps: what a lane computes next, how long it takes, and what has happened when it ends.

The scheduler of vLLM V1: decoding sequences first, then prompts begun, then prompts that wait, in one budget of tokens;
a sequence that finds no block pushes out the one that joined last, which computes its tokens again. With
`Pools.chunked` false, as vLLM V0 and simdistserve: prompts go whole and first, and decode waits for them.
"""

from __future__ import annotations

from sim.kernel.blocks import blocks_for, give_blocks, has_blocks, take_blocks
from sim.kernel.compiled import compiled
from sim.kernel.handover import ask, grant, send
from sim.kernel.heap import STAGE_FREE, STEP_END, push
from sim.kernel.prefixes import cached_tokens, remember
from sim.kernel.queues import prepend, remove
from sim.kernel.state import (
    DECODE,
    DECODING,
    DONE,
    DONE_TOKENS,
    ENDED,
    GRANTED,
    NOBODY,
    PREEMPTIONS,
    PREFILL,
    PREFILLED,
    PREFILLING,
    QUEUED,
    ROOM,
    State,
)
from sim.kernel.stretches import count_step, end_of, length, make_tokens, reserve, say_frame, settle

_DONE = 1  # sim.outcome.End.DONE
_FIRST_PLACE = -1e300  # a queue key before every time


@compiled
def wake(st: State, worker: int, now_s: float) -> None:
    """Start a step on every idle lane that has something to do."""
    workers = st.workers
    first, last = workers.first_lane[worker], workers.first_lane[worker + 1]
    for lane in range(first, last):
        if st.lanes.busy[lane] or not workers.alive[worker]:
            continue
        if last - first > 1 and now_s < workers.stage_until[worker]:
            if not workers.stage_awaited[worker]:
                workers.stage_awaited[worker] = 1
                push(st, workers.stage_until[worker], STAGE_FREE, worker, 0)
            return
        _start(st, lane, now_s)
        if st.lanes.busy[lane]:
            workers.stage_until[worker] = now_s + (st.lanes.step_until[lane] - now_s) / (last - first)


@compiled
def _start(st: State, lane: int, now_s: float) -> None:
    lanes, pools = st.lanes, st.pools
    worker = lanes.worker[lane]
    pool = st.workers.pool[worker]
    _join_landed(st, lane)
    seqs, context_tokens, tokens, prompts, pairs = 0, 0, 0, 0, 0.0
    if pools.chunked[pool]:
        seqs, context_tokens = _grow(st, lane)
        tokens, prompts, pairs = _go_on(st, lane, pools.budget[pool] - seqs)
    more, begun, more_pairs = _begin(st, lane, pools.budget[pool] - seqs - tokens, now_s)
    tokens, prompts, pairs = tokens + more, prompts + begun, pairs + more_pairs
    if not pools.chunked[pool] and tokens == 0:
        seqs, context_tokens = _grow(st, lane)
    if seqs == 0 and tokens == 0:
        return
    time_s = 0.0
    if seqs:
        read_s = st.seqs.mixed[pool, seqs] if tokens else st.seqs.context[pool, seqs]
        time_s = st.seqs.fixed[pool, seqs] + read_s * context_tokens
    if tokens:
        time_s += st.tokens.dense[pool, tokens + seqs] - (st.tokens.dense[pool, seqs] if seqs else 0.0)
        time_s += st.tokens.pair[pool, tokens] * pairs + pools.prefill_seq_s[pool] * prompts
    lanes.busy[lane] = 1
    lanes.prompts_only[lane] = seqs == 0
    lanes.step_tokens[lane] = tokens
    lanes.seqs[lane] = seqs
    lanes.stretch_from[lane] = now_s
    lanes.stretch_context[lane] = context_tokens
    lanes.step_from[lane] = now_s
    lanes.step_until[lane] = now_s + time_s
    lanes.done[lane] = 0
    lanes.steps[lane] = length(st, lane, seqs) if tokens == 0 else 1
    lanes.epoch[lane] += 1
    end_s = now_s + time_s if lanes.steps[lane] == 1 else end_of(st, lane, lanes.steps[lane])
    push(st, end_s, STEP_END, lane, lanes.epoch[lane])


@compiled
def _join_landed(st: State, lane: int) -> None:
    """Let what has landed take part, the lanes of a worker in equal shares."""
    lanes, worker = st.lanes, st.lanes.worker[lane]
    queue = st.rules.num_workers + worker
    first, last = st.workers.first_lane[worker], st.workers.first_lane[worker + 1]
    share = (st.workers.seqs_held[worker] + last - first - 1) // (last - first)
    while st.queues.head[queue] != NOBODY and lanes.num_running[lane] < min(share, st.pools.max_seqs[DECODE]):
        request = st.queues.head[queue]
        remove(st, request)
        st.reqs.stage[request] = DECODING
        st.reqs.todo[request] = 0
        _join(st, lane, request)


@compiled
def _join(st: State, lane: int, request: int) -> None:
    st.running[lane, st.lanes.num_running[lane]] = request
    st.lanes.num_running[lane] += 1


@compiled
def _grow(st: State, lane: int) -> tuple[int, int]:
    """Give each decoding sequence room for one token; return how many there are, and their context tokens."""
    lanes, reqs = st.lanes, st.reqs
    worker = lanes.worker[lane]
    seqs, context_tokens, i = 0, 0, 0
    while i < lanes.num_running[lane]:
        request = st.running[lane, i]
        i += 1
        if reqs.todo[request] > 0:
            continue
        if reqs.room[request] == 0:
            while not has_blocks(st, worker, 1) and lanes.num_running[lane] >= i:
                _preempt_last(st, lane)
            if lanes.num_running[lane] < i:
                break  # it was itself the last
            take_blocks(st, worker, request, 1)
            reqs.room[request] = st.rules.block_size
        reqs.room[request] -= 1
        seqs += 1
        context_tokens += reqs.prompt[request] + reqs.made[request]
    return seqs, context_tokens


@compiled
def _preempt_last(st: State, lane: int) -> None:
    """Push the sequence that joined last back to the front of the queue, to compute all its tokens again."""
    lanes, worker = st.lanes, st.lanes.worker[lane]
    lanes.num_running[lane] -= 1
    request = st.running[lane, lanes.num_running[lane]]
    give_blocks(st, worker, request)
    st.workers.seqs_held[worker] -= 1
    st.reqs.stage[request] = QUEUED
    st.reqs.whole[request] = 1
    st.reqs.chunk[request] = 0
    st.reqs.key[request] = _FIRST_PLACE
    prepend(st, worker, request)
    st.counts[PREEMPTIONS] += 1


@compiled
def _go_on(st: State, lane: int, budget: int) -> tuple[int, int, float]:
    """Give prompts begun their next chunk; return tokens, prompts and attention pairs."""
    lanes, reqs = st.lanes, st.reqs
    tokens, prompts, pairs = 0, 0, 0.0
    if lanes.num_begun[lane] == 0:
        return tokens, prompts, pairs
    for i in range(lanes.num_running[lane]):
        request = st.running[lane, i]
        if reqs.todo[request] == 0 or tokens >= budget:
            continue
        chunk = min(reqs.todo[request], budget - tokens)
        reqs.chunk[request] = chunk
        tokens += chunk
        prompts += 1
        pairs += chunk * (reqs.computed[request] + chunk / 2.0)
    return tokens, prompts, pairs


@compiled
def _begin(st: State, lane: int, budget: int, now_s: float) -> tuple[int, int, float]:
    """Take prompts from the queue into the batch; return tokens, prompts and attention pairs."""
    lanes, reqs, workers = st.lanes, st.reqs, st.workers
    worker = lanes.worker[lane]
    pool = workers.pool[worker]
    tokens, prompts, pairs = 0, 0, 0.0
    while tokens < budget and lanes.num_running[lane] < st.pools.max_seqs[pool]:
        grant(st, worker, now_s)
        request = st.queues.head[worker]
        if request == NOBODY or (pool == DECODE and not reqs.whole[request]):
            break
        total = reqs.prompt[request] + reqs.made[request]
        need = blocks_for(st, total + 1)
        if not has_blocks(st, worker, need):
            break
        cached = cached_tokens(st, worker, request)
        chunk = total - cached
        if not st.pools.chunked[pool]:
            if tokens and tokens + chunk > budget:
                break
        else:
            chunk = min(chunk, budget - tokens)
        remove(st, request)
        take_blocks(st, worker, request, need)
        workers.seqs_held[worker] += 1
        reqs.room[request] = need * st.rules.block_size - total
        reqs.computed[request], reqs.todo[request], reqs.chunk[request] = cached, total - cached, chunk
        _join(st, lane, request)
        tokens += chunk
        prompts += 1
        pairs += chunk * (cached + chunk / 2.0)
        if pool == PREFILL and not reqs.whole[request]:
            reqs.stage[request] = PREFILLING
            reqs.prefill_from[request] = now_s
            ask(st, request, now_s)
        else:
            reqs.stage[request] = DECODING
    return tokens, prompts, pairs


@compiled
def end_step(st: State, lane: int, now_s: float) -> None:
    """Take the results of the stretch under way, and start the next."""
    lanes, reqs, workers, running = st.lanes, st.reqs, st.workers, st.running
    worker = lanes.worker[lane]
    settle(st, lane, now_s)
    count_step(st, lane)
    lanes.busy[lane] = 0
    first_s = end_of(st, lane, 1) if lanes.steps[lane] > 1 else now_s
    stay, begun = 0, 0
    for i in range(lanes.num_running[lane]):
        request = running[lane, i]
        stays = True
        if reqs.todo[request] == 0:
            if not lanes.prompts_only[lane]:
                make_tokens(st, request, lanes.steps[lane], first_s, now_s, workers.step_s[worker])
                stays = _goes_on(st, worker, request, lanes.steps[lane] - 1)
        elif reqs.chunk[request] > 0:
            stays = _end_chunk(st, worker, request, now_s)
            begun += stays and reqs.todo[request] > 0
        else:
            begun += 1
        if stays:
            running[lane, stay] = request
            stay += 1
    lanes.num_running[lane] = stay
    lanes.num_begun[lane] = begun
    grant(st, worker, now_s)
    wake(st, worker, now_s)
    say_frame(st, worker, now_s)


@compiled
def _end_chunk(st: State, worker: int, request: int, now_s: float) -> bool:
    """Take the results of part of a prompt; return whether the request stays in the lane."""
    reqs = st.reqs
    reqs.todo[request] -= reqs.chunk[request]
    reqs.computed[request] += reqs.chunk[request]
    reqs.chunk[request] = 0
    return reqs.todo[request] > 0 or _end_prompt(st, worker, request, now_s)


@compiled
def _end_prompt(st: State, worker: int, request: int, now_s: float) -> bool:
    """Go on after a whole prompt; return whether the request stays in the lane."""
    reqs = st.reqs
    forget_owed(st, worker, request)
    remember(st, worker, request)
    st.workers.step_seqs[worker] += 1
    st.counts[ROOM] += 1
    if reqs.whole[request]:
        return _emit(st, worker, request, now_s)
    reqs.stage[request] = PREFILLED
    st.workers.seqs_held[worker] -= 1
    if st.rules.token_from_prefill and not _emit(st, reqs.decode_on[request], request, now_s):
        grant(st, reqs.decode_on[request], now_s)
        wake(st, reqs.decode_on[request], now_s)
        return False
    if reqs.hand[request] == GRANTED:
        send(st, request, now_s)
    return False


@compiled
def forget_owed(st: State, worker: int, request: int) -> None:
    """Stop counting a prompt as work before the worker."""
    workers, reqs = st.workers, st.reqs
    if reqs.owed_tokens[request] == 0:
        return
    workers.owed_requests[worker] -= 1
    workers.owed_tokens[worker] -= reqs.owed_tokens[request]
    workers.owed_pairs[worker] -= reqs.owed_pairs[request]
    reqs.owed_tokens[request] = 0


@compiled
def _emit(st: State, worker: int, request: int, now_s: float) -> bool:
    """Make the output token that ends a prompt; return whether more are to come."""
    make_tokens(st, request, 1, now_s, now_s, 0.0)
    st.workers.load_context[worker] += 1
    return _goes_on(st, worker, request, 0)


@compiled
def _goes_on(st: State, worker: int, request: int, tokens: int) -> bool:
    """End a request that has made all its tokens, or give it room for what it made beyond the one it had room for."""
    if st.reqs.made[request] >= st.reqs.output[request]:
        _finish(st, request)
        return False
    if tokens > 0:
        reserve(st, worker, request, tokens)
    return True


@compiled
def _finish(st: State, request: int) -> None:
    reqs, workers = st.reqs, st.workers
    worker, sender = reqs.decode_on[request], reqs.prefill_on[request]
    if sender != NOBODY and reqs.stage[request] == PREFILLED:  # its only token came from prefill
        give_blocks(st, sender, request)
        workers.legs[sender] -= 1
    if reqs.stage[request] == DECODING or reqs.hand[request] == GRANTED:
        workers.seqs_held[worker] -= 1
    remove(st, request)
    give_blocks(st, worker, request)
    workers.legs[worker] -= 1
    workers.load_seqs[worker] -= 1
    workers.load_context[worker] -= reqs.prompt[request] + reqs.made[request]
    reqs.stage[request] = ENDED
    reqs.end[request] = _DONE
    st.counts[DONE] += 1
    st.counts[ROOM] += 1
    st.counts[DONE_TOKENS] += reqs.made[request]
