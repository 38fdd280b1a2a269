"""Workers that go and come back: what they held is computed again elsewhere, and the client waits, no more.

A decode worker that loses the prefill side of a hand-over computes the prompt itself; a request that loses its decode
worker is routed anew, with the tokens it has already made as part of its prompt.
"""

from __future__ import annotations

from sim.kernel.blocks import give_blocks
from sim.kernel.compiled import compiled, entry
from sim.kernel.heap import DOWN, UP, push
from sim.kernel.prefixes import forget_all
from sim.kernel.queues import append, remove
from sim.kernel.routing import route
from sim.kernel.state import (
    FUTURE,
    GRANTED,
    HELD,
    LANDED,
    NOBODY,
    NOT_ASKED,
    PREFILLED,
    PREFILLING,
    QUEUED,
    ROOM,
    SENDING,
    State,
)
from sim.kernel.steps import forget_owed, wake
from sim.kernel.stretches import interrupt, say_frame, settle_all


@entry
def push_outage(st: State, worker: int, from_s: float, until_s: float) -> None:
    """Let a worker be gone for a while; one that comes up later is gone from the start."""
    push(st, from_s, DOWN, worker, 0)
    push(st, until_s, UP, worker, 0)


@entry
def admit(st: State, worker: int, now_s: float) -> None:
    """Let a worker take work from now on."""
    bring_up(st, worker, now_s)


@entry
def retire(st: State, worker: int, now_s: float) -> None:
    """Let a worker that has drained be gone, with what its cache held."""
    take_down(st, worker, now_s)


@compiled
def bring_up(st: State, worker: int, now_s: float) -> None:
    """Let a worker take work, and hand it what no worker could take."""
    settle_all(st, now_s)
    st.workers.alive[worker] = st.workers.takes[worker] = 1
    st.counts[ROOM] += 1
    say_frame(st, worker, now_s)
    for request in range(len(st.reqs.stage)):
        if st.reqs.stage[request] == HELD:
            route(st, request, now_s)
    wake(st, worker, now_s)


@compiled
def take_down(st: State, worker: int, now_s: float) -> None:
    """End all that runs on a worker, free what it held on both sides, and route it anew."""
    settle_all(st, now_s)
    interrupt(st, worker, now_s)
    st.workers.alive[worker] = st.workers.takes[worker] = 0
    for lane in range(st.workers.first_lane[worker], st.workers.first_lane[worker + 1]):
        st.lanes.busy[lane] = 0
        st.lanes.epoch[lane] += 1
        st.lanes.num_running[lane] = 0
    forget_all(st, worker)
    st.workers.stage_until[worker] = now_s
    st.workers.sends_until[worker] = now_s
    st.workers.receives_until[worker] = now_s
    for request in range(len(st.reqs.stage)):
        stage = st.reqs.stage[request]
        if stage == FUTURE or stage >= HELD:
            continue
        if st.reqs.decode_on[request] == worker:
            _lose_decode(st, request, now_s)
        elif st.reqs.prefill_on[request] == worker and stage <= PREFILLED and st.reqs.hand[request] != LANDED:
            _lose_prefill(st, request, now_s)
    st.workers.seqs_held[worker] = 0
    say_frame(st, worker, now_s)


@compiled
def _lose_decode(st: State, request: int, now_s: float) -> None:
    """Take a request away from both sides; its prefill starts anew."""
    reqs, workers = st.reqs, st.workers
    worker, sender = reqs.decode_on[request], reqs.prefill_on[request]
    if not reqs.whole[request] and reqs.hand[request] != LANDED:
        _leave_prefill(st, request)
    else:
        forget_owed(st, worker, request)
    remove(st, request)
    give_blocks(st, worker, request)
    workers.legs[worker] -= 1
    workers.load_seqs[worker] -= 1
    workers.load_context[worker] -= reqs.prompt[request] + reqs.made[request]
    reqs.chunk[request] = 0
    # What is on its way must not land, also if no worker lives that could take the request, or it is refused.
    reqs.hand[request] = NOT_ASKED
    reqs.attempt[request] += 1
    route(st, request, now_s)
    if sender != NOBODY and workers.alive[sender]:
        wake(st, sender, now_s)


@compiled
def _lose_prefill(st: State, request: int, now_s: float) -> None:
    """Let the decode worker compute the prompt itself."""
    reqs, workers = st.reqs, st.workers
    worker = reqs.decode_on[request]
    _leave_prefill(st, request)
    remove(st, request)
    if reqs.hand[request] == GRANTED or reqs.hand[request] == SENDING:
        workers.seqs_held[worker] -= 1
        give_blocks(st, worker, request)
    reqs.whole[request] = 1
    reqs.prefill_on[request] = NOBODY
    reqs.attempt[request] += 1
    reqs.stage[request] = QUEUED
    total = reqs.prompt[request] + reqs.made[request]
    reqs.owed_tokens[request], reqs.owed_pairs[request] = total, total * total / 2.0
    workers.owed_requests[worker] += 1
    workers.owed_tokens[worker] += total
    workers.owed_pairs[worker] += reqs.owed_pairs[request]
    interrupt(st, worker, now_s)
    append(st, worker, request)
    wake(st, worker, now_s)


@compiled
def _leave_prefill(st: State, request: int) -> None:
    """Take a request out of its prefill worker, running, queued or sending."""
    reqs, workers = st.reqs, st.workers
    sender = reqs.prefill_on[request]
    forget_owed(st, sender, request)
    if reqs.stage[request] == QUEUED:
        remove(st, request)
    elif reqs.stage[request] == PREFILLING:
        _leave_lane(st, sender, request)
        workers.seqs_held[sender] -= 1
    give_blocks(st, sender, request)
    workers.legs[sender] -= 1
    reqs.chunk[request] = 0


@compiled
def _leave_lane(st: State, worker: int, request: int) -> None:
    lanes = st.lanes
    for lane in range(st.workers.first_lane[worker], st.workers.first_lane[worker + 1]):
        stay = 0
        for i in range(lanes.num_running[lane]):
            if st.running[lane, i] != request:
                st.running[lane, stay] = st.running[lane, i]
                stay += 1
        lanes.num_running[lane] = stay
