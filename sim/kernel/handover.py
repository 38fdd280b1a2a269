"""A prompt's KV on its way: blocks asked for as prefill starts, granted in order, sent over two busy links, landed.

Decode's blocks are asked for when prefill starts, not when the request arrives: what holds blocks of a decode worker
never waits for anything but its own prefill and the links, so no circle of waiting can close. Prefill's blocks are held
until the last byte has left.
"""

from __future__ import annotations

from sim.kernel.blocks import blocks_for, give_blocks, has_blocks, take_blocks
from sim.kernel.compiled import compiled
from sim.kernel.heap import SENT, push
from sim.kernel.queues import append, remove
from sim.kernel.state import ASKED, DECODE, GRANTED, LANDED, NOBODY, PREFILLED, ROOM, SENDING, State
from sim.kernel.stretches import growth, interrupt


@compiled
def ask(st: State, request: int, now_s: float) -> None:
    """Queue a hand-over at its decode worker."""
    worker = st.reqs.decode_on[request]
    st.reqs.hand[request] = ASKED
    need = blocks_for(st, st.reqs.prompt[request] + st.reqs.made[request] + 1)
    if st.queues.head[worker] != NOBODY or not has_blocks(st, worker, need + growth(st, worker)):
        interrupt(st, worker, now_s)
    append(st, worker, request)
    grant(st, worker, now_s)


@compiled
def grant(st: State, worker: int, now_s: float) -> None:
    """Give blocks to the hand-overs at the front of a decode worker's queue, as long as there are some."""
    if st.workers.pool[worker] != DECODE:
        return
    reqs, workers = st.reqs, st.workers
    lanes = workers.first_lane[worker + 1] - workers.first_lane[worker]
    while True:
        request = st.queues.head[worker]
        if request == NOBODY or reqs.whole[request] or workers.seqs_held[worker] >= lanes * st.pools.max_seqs[DECODE]:
            return
        tokens = reqs.prompt[request] + reqs.made[request]
        need = blocks_for(st, tokens + 1)
        if not has_blocks(st, worker, need):
            return
        remove(st, request)
        take_blocks(st, worker, request, need)
        reqs.room[request] = need * st.rules.block_size - tokens
        workers.seqs_held[worker] += 1
        reqs.hand[request] = GRANTED
        reqs.prefill_from[request] = max(reqs.prefill_from[request], now_s)
        if reqs.stage[request] == PREFILLED:
            send(st, request, now_s)


@compiled
def send(st: State, request: int, now_s: float) -> None:
    """Reckon when the last byte lands, now that prefill has ended and blocks are granted.

    The links of both workers carry one hand-over at a time. With KV sent layer by layer, all but the last layer's
    share may have left while prefill ran, if the links were free then.
    """
    reqs, rules = st.reqs, st.rules
    sender, receiver = reqs.prefill_on[request], reqs.decode_on[request]
    wire_s = wire_time_s(st, reqs.prompt[request] + reqs.made[request])
    begin_s = reqs.prefill_from[request] if rules.tail_share < 1.0 else now_s
    begin_s = max(begin_s, st.workers.sends_until[sender], st.workers.receives_until[receiver])
    sent_s = max(now_s + rules.tail_share * wire_s, begin_s + wire_s)
    st.workers.sends_until[sender] = sent_s
    st.workers.receives_until[receiver] = sent_s
    reqs.hand[request] = SENDING
    push(st, sent_s + rules.link_latency_s, SENT, request, reqs.attempt[request])


@compiled
def wire_time_s(st: State, tokens: int) -> float:
    """Return the time that the KV of `tokens` tokens takes on an idle link."""
    return tokens * st.rules.kv_bytes_per_token / st.rules.link_bytes_per_s


@compiled
def land(st: State, request: int, now_s: float) -> None:
    """Free prefill's blocks and line the request up for the next step of its decode worker."""
    reqs = st.reqs
    sender, receiver = reqs.prefill_on[request], reqs.decode_on[request]
    give_blocks(st, sender, request)
    st.workers.legs[sender] -= 1
    st.counts[ROOM] += 1
    reqs.hand[request] = LANDED
    interrupt(st, receiver, now_s)
    append(st, st.rules.num_workers + receiver, request)
