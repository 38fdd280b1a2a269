"""The routing rules of the search gear: where an arrival goes, whether it is refused, and what is counted for it."""

from __future__ import annotations

from sim.kernel.blocks import blocks_for
from sim.kernel.compiled import compiled, entry
from sim.kernel.predict import is_full, owed_s, pair_s, prefill_s, prompts_s, tpot_s, whole_s
from sim.kernel.prefixes import cached_tokens
from sim.kernel.queues import append, insert_by_key
from sim.kernel.state import DECODE, ENDED, HELD, NOBODY, NOT_ASKED, PREFILL, QUEUED, RANDOM, TURN, State
from sim.kernel.steps import wake
from sim.kernel.stretches import interrupt

_REFUSED, _TOO_LONG = 2, 3  # sim.outcome.End
_PREDICTED_WORK, _LEAST_LOADED, _ROUND_ROBIN = 0, 1, 2  # sim.cluster.Rule
_ADMIT_ALL, _BY_TTFT = 0, 1  # sim.cluster.Admission
_FULL = 1e6  # a score beyond every score of a worker with room
_HOPELESS = 1e300  # a queue key behind every time


@compiled
def route(st: State, request: int, now_s: float) -> None:
    """Decide for one arrival by the rules of the state, and act on it."""
    st.counts[TURN] += 1
    prefill = _best_prefill(st, request, now_s)
    decode = _best_decode(st, request, now_s, prefill == NOBODY)
    if decode == NOBODY and prefill == NOBODY:
        st.reqs.stage[request] = HELD
        return
    if decode == NOBODY:
        prefill, decode = NOBODY, prefill  # a prefill worker serves alone
    elif prefill != NOBODY:
        prefill, decode = _shortcut(st, request, now_s, prefill, decode)
    if st.rules.admission != _ADMIT_ALL and not _is_promising(st, request, now_s, prefill, decode):
        refuse(st, request)
        return
    assign(st, request, prefill, decode, now_s)


@entry
def refuse(st: State, request: int) -> None:
    """Turn an arrival away."""
    st.reqs.stage[request] = ENDED
    st.reqs.end[request] = _REFUSED


@entry
def assign(st: State, request: int, prefill: int, decode: int, now_s: float) -> None:
    """Send a request to a pair of workers, or whole to `decode` if `prefill` is NOBODY."""
    reqs, workers = st.reqs, st.workers
    total = reqs.prompt[request] + reqs.made[request]
    if prefill != NOBODY and blocks_for(st, total + 1) > st.pools.kv_blocks[PREFILL]:
        prefill = NOBODY
    longest = reqs.prompt[request] + reqs.output[request]
    if blocks_for(st, longest + 1) > st.pools.kv_blocks[workers.pool[decode]]:
        reqs.stage[request], reqs.end[request] = ENDED, _TOO_LONG
        return
    worker = decode if prefill == NOBODY else prefill
    reqs.stage[request] = QUEUED
    reqs.hand[request] = NOT_ASKED
    reqs.attempt[request] += 1
    reqs.whole[request] = prefill == NOBODY
    reqs.prefill_on[request], reqs.decode_on[request] = prefill, decode
    cached = cached_tokens(st, worker, request)
    tokens = total - cached
    reqs.owed_tokens[request] = tokens
    reqs.owed_pairs[request] = tokens * (cached + tokens / 2.0)
    workers.owed_requests[worker] += 1
    workers.owed_tokens[worker] += tokens
    workers.owed_pairs[worker] += reqs.owed_pairs[request]
    if prefill != NOBODY:
        workers.legs[prefill] += 1
    workers.legs[decode] += 1
    workers.load_seqs[decode] += 1
    workers.load_context[decode] += total
    interrupt(st, worker, now_s)
    _enqueue(st, worker, request, now_s)
    wake(st, worker, now_s)


@compiled
def _enqueue(st: State, worker: int, request: int, now_s: float) -> None:
    if not st.rules.by_slack:
        append(st, worker, request)
        return
    reqs, pool = st.reqs, st.workers.pool[worker]
    alone_s = prompts_s(st, pool, reqs.owed_tokens[request], reqs.owed_pairs[request], 1, 0)
    latest_s = reqs.arrived[request] + st.targets.ttft_s[reqs.slo[request]] - alone_s
    st.reqs.key[request] = latest_s if latest_s >= now_s else _HOPELESS
    insert_by_key(st, worker, request)


@compiled
def _best_prefill(st: State, request: int, now_s: float) -> int:
    best, best_score = NOBODY, 0.0
    count = st.rules.num_prefill
    for worker in range(count):
        if not st.workers.takes[worker]:
            continue
        if st.rules.rule == _PREDICTED_WORK:
            score = prefill_s(st, worker, request, now_s)
        elif st.rules.rule == _LEAST_LOADED:
            score = 1.0 * st.workers.owed_requests[worker]
        else:
            score = _blind(st, worker, count)
        if best == NOBODY or score < best_score:
            best, best_score = worker, score
    return best


@compiled
def _best_decode(st: State, request: int, now_s: float, is_whole: bool) -> int:
    best, best_score = NOBODY, 0.0
    first, last = st.rules.num_prefill, st.rules.num_workers
    slo = st.reqs.slo[request]
    ttft_target_s, tpot_target_s = st.targets.ttft_s[slo], st.targets.tpot_s[slo]
    for worker in range(first, last):
        if not st.workers.takes[worker]:
            continue
        if st.rules.rule == _PREDICTED_WORK:
            score = tpot_s(st, worker, request, owed_s(st, worker)) / tpot_target_s
            if is_whole:
                score += whole_s(st, worker, request, now_s) / ttft_target_s
            if is_full(st, worker, request):
                score += _FULL
        elif st.rules.rule == _LEAST_LOADED:
            score = 1.0 * st.workers.load_seqs[worker]
        else:
            score = _blind(st, worker - first, last - first)
        if best == NOBODY or score < best_score:
            best, best_score = worker, score
    return best


@compiled
def _blind(st: State, place: int, count: int) -> float:
    """Score without a look at load: the next in turn, or any, comes first."""
    if st.rules.rule == _ROUND_ROBIN:
        return 1.0 * ((place - st.counts[TURN]) % count)
    # The linear congruence of Knuth's MMIX; its high bits are the draw.
    st.counts[RANDOM] = st.counts[RANDOM] * 6364136223846793005 + 1442695040888963407
    return 1.0 * ((st.counts[RANDOM] >> 33) & 0x3FFFFFFF)


@compiled
def _shortcut(st: State, request: int, now_s: float, prefill: int, decode: int) -> tuple[int, int]:
    """Let a decode worker serve a short prompt whole, or one that no prefill worker has ready in time."""
    rules, reqs = st.rules, st.reqs
    if rules.whole_below == 0 and rules.overflow == 0:
        return prefill, decode
    slo = reqs.slo[request]
    ttft_target_s, tpot_target_s = st.targets.ttft_s[slo], st.targets.tpot_s[slo]
    uncached = reqs.prompt[request] + reqs.made[request] - cached_tokens(st, prefill, request)
    is_short = uncached <= rules.whole_below
    if not is_short and (not rules.overflow or pair_s(st, prefill, decode, request, now_s) <= ttft_target_s):
        return prefill, decode
    alone_s = prompts_s(st, DECODE, uncached, uncached * uncached / 2.0, 1, 0)
    best, best_s = NOBODY, ttft_target_s
    for worker in range(rules.num_prefill, st.rules.num_workers):
        if not st.workers.takes[worker] or is_full(st, worker, request):
            continue
        first_s = whole_s(st, worker, request, now_s) + rules.request_overhead_s
        slowed_s = tpot_s(st, worker, request, owed_s(st, worker) + alone_s)
        if first_s <= best_s and slowed_s <= tpot_target_s:
            best, best_s = worker, first_s
    return (prefill, decode) if best == NOBODY else (NOBODY, best)


@compiled
def _is_promising(st: State, request: int, now_s: float, prefill: int, decode: int) -> bool:
    rules = st.rules
    slo = st.reqs.slo[request]
    ttft_target_s, tpot_target_s = st.targets.ttft_s[slo], st.targets.tpot_s[slo]
    if prefill == NOBODY:
        ttft_s = whole_s(st, decode, request, now_s) + rules.request_overhead_s
    else:
        ttft_s = pair_s(st, prefill, decode, request, now_s)
    if ttft_s > ttft_target_s - (now_s - st.reqs.arrived[request]):
        return False
    return rules.admission == _BY_TTFT or tpot_s(st, decode, request, owed_s(st, decode)) <= tpot_target_s
