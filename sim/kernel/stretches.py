"""Stretches: decode steps of one unchanging batch, reckoned in closed form instead of one event each.

A stretch ends with the step in which its first sequence ends. Whoever queues something at a worker, or
takes blocks that its stretch may need, must `interrupt` it first; whoever only reads counts must `settle`.
"""

from __future__ import annotations

from sim.kernel.blocks import has_blocks, take_blocks
from sim.kernel.compiled import compiled
from sim.kernel.heap import STEP_END, push
from sim.kernel.state import STEPS, State


@compiled
def length(st: State, lane: int, seqs: int) -> int:
    """Count the steps that the batch of a lane, all of it decoding, can take without an event.

    One, if there might be too few blocks for all of them to grow, or with pipeline stages, which lanes share.
    """
    lanes, reqs, workers = st.lanes, st.reqs, st.workers
    worker = lanes.worker[lane]
    if lanes.num_running[lane] != seqs or workers.first_lane[worker + 1] - workers.first_lane[worker] > 1:
        return 1
    steps = 1 << 40
    for i in range(seqs):
        request = st.running[lane, i]
        steps = min(steps, reqs.output[request] - reqs.made[request])
    return steps if has_blocks(st, worker, seqs * (steps // st.rules.block_size + 1)) else 1


@compiled
def growth(st: State, worker: int) -> int:
    """Bound the blocks that a stretch of the worker, if one is under way, takes until its end."""
    lane = st.workers.first_lane[worker]
    if not st.lanes.busy[lane] or st.lanes.steps[lane] == 1:
        return 0
    return st.lanes.seqs[lane] * (st.lanes.steps[lane] // st.rules.block_size + 1)


@compiled
def end_of(st: State, lane: int, steps: int) -> float:
    """Return the time at which the first `steps` steps of a stretch of decode steps have ended."""
    lanes = st.lanes
    pool, seqs = st.workers.pool[lanes.worker[lane]], lanes.seqs[lane]
    context_tokens = steps * lanes.stretch_context[lane] + seqs * (steps * (steps - 1) / 2.0)
    return lanes.stretch_from[lane] + steps * st.seqs.fixed[pool, seqs] + st.seqs.context[pool, seqs] * context_tokens


@compiled
def settle(st: State, lane: int, now_s: float) -> None:
    """Count the steps that have ended by now, but for the last of a stretch: that has an event of its own."""
    lanes = st.lanes
    if not lanes.busy[lane] or lanes.done[lane] >= lanes.steps[lane] - 1 or lanes.step_until[lane] > now_s:
        return
    while lanes.done[lane] < lanes.steps[lane] - 1 and lanes.step_until[lane] <= now_s:
        count_step(st, lane)
        lanes.done[lane] += 1
        lanes.step_from[lane] = lanes.step_until[lane]
        lanes.step_until[lane] = end_of(st, lane, lanes.done[lane] + 1)
    say_frame(st, lanes.worker[lane], lanes.step_from[lane])


@compiled
def count_step(st: State, lane: int) -> None:
    """Count the step under way as done, as the router sees it."""
    lanes, worker = st.lanes, st.lanes.worker[lane]
    st.counts[STEPS] += 1
    st.workers.load_context[worker] += lanes.seqs[lane]
    st.workers.step_s[worker] = lanes.step_until[lane] - lanes.step_from[lane]
    st.workers.step_prompt_tokens[worker] = lanes.step_tokens[lane]
    st.workers.step_seqs[worker] = lanes.seqs[lane]


@compiled
def say_frame(st: State, worker: int, now_s: float) -> None:
    """Tell the router what the worker holds."""
    workers = st.workers
    running = 0
    for lane in range(workers.first_lane[worker], workers.first_lane[worker + 1]):
        running += st.lanes.num_running[lane]
    workers.running[worker] = running
    workers.waiting[worker] = st.queues.length[worker] + workers.seqs_held[worker] - running
    workers.blocks[worker] = workers.used_blocks[worker]
    workers.frames[worker] += 1
    workers.frame_s[worker] = now_s


@compiled
def settle_all(st: State, now_s: float) -> None:
    """Count the steps of all lanes that have ended by now."""
    for lane in range(len(st.lanes.busy)):
        settle(st, lane, now_s)


@compiled
def interrupt(st: State, worker: int, now_s: float) -> None:
    """Let the worker's stretches end with the step under way, and tell the requests of the steps before it."""
    lanes = st.lanes
    for lane in range(st.workers.first_lane[worker], st.workers.first_lane[worker + 1]):
        if not lanes.busy[lane] or lanes.steps[lane] == 1:
            continue
        settle(st, lane, now_s)
        done = lanes.done[lane]
        if done > 0:
            first_s, last_s = end_of(st, lane, 1), lanes.step_from[lane]
            for i in range(lanes.num_running[lane]):
                make_tokens(st, st.running[lane, i], done, first_s, last_s, st.workers.step_s[worker])
                reserve(st, worker, st.running[lane, i], done)
            lanes.stretch_context[lane] += done * lanes.seqs[lane]
            lanes.stretch_from[lane] = last_s
        lanes.steps[lane], lanes.done[lane] = 1, 0
        lanes.epoch[lane] += 1
        push(st, lanes.step_until[lane], STEP_END, lane, lanes.epoch[lane])


@compiled
def make_tokens(st: State, request: int, count: int, first_s: float, last_s: float, step_s: float) -> None:
    """Note `count` output tokens, the first and the last at these times; `step_s` is the longest gap between them."""
    reqs = st.reqs
    if reqs.made[request] == 0:
        reqs.first_s[request] = first_s
    else:
        reqs.max_itl[request] = max(reqs.max_itl[request], first_s - reqs.last_s[request])
    if count > 1:
        reqs.max_itl[request] = max(reqs.max_itl[request], step_s)
    reqs.last_s[request] = last_s
    reqs.made[request] += count


@compiled
def reserve(st: State, worker: int, request: int, tokens: int) -> None:
    """Give a request room for `tokens` tokens more on a worker that has the blocks."""
    reqs, block_size = st.reqs, st.rules.block_size
    missing = tokens - reqs.room[request]
    if missing <= 0:
        reqs.room[request] -= tokens
        return
    blocks = (missing + block_size - 1) // block_size
    take_blocks(st, worker, request, blocks)
    reqs.room[request] = blocks * block_size - missing
