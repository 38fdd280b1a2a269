"""The loop: the next arrival or event, whichever is earlier."""

from __future__ import annotations

from sim.kernel.compiled import compiled, entry
from sim.kernel.handover import grant, land
from sim.kernel.heap import DOWN, SENT, STAGE_FREE, STEP_END, pop
from sim.kernel.outages import bring_up, take_down
from sim.kernel.routing import route
from sim.kernel.state import HEAP_SIZE, ROOM, SENDING, State
from sim.kernel.steps import end_step, wake
from sim.kernel.stretches import interrupt, settle_all


@entry
def advance(st: State, until_s: float) -> None:
    """Let all events up to `until_s` happen, arrivals not among them."""
    while st.counts[HEAP_SIZE] and st.events.time_s[0] <= until_s:
        _happen(st)
    settle_all(st, until_s)


@entry
def advance_to_room(st: State, until_s: float) -> float:
    """Let events happen up to `until_s`, or to the first time at which a worker has more room; return the time reached.

    Room comes when a prompt is computed, a sequence has ended, or blocks are free again.
    """
    room = st.counts[ROOM]
    while st.counts[HEAP_SIZE] and st.events.time_s[0] <= until_s:
        now_s = st.events.time_s[0]
        _happen(st)
        if st.counts[ROOM] != room and not (st.counts[HEAP_SIZE] and st.events.time_s[0] <= now_s):
            until_s = now_s
            break
    settle_all(st, until_s)
    return until_s


@compiled
def _happen(st: State) -> None:
    """Take the next event and let it happen."""
    now_s = st.events.time_s[0]
    kind, subject, epoch = st.events.kind[0], st.events.subject[0], st.events.epoch[0]
    pop(st)
    if kind == STEP_END:
        if st.lanes.epoch[subject] == epoch:
            end_step(st, subject, now_s)
    elif kind == STAGE_FREE:
        st.workers.stage_awaited[subject] = 0
        wake(st, subject, now_s)
    elif kind == SENT:
        if st.reqs.attempt[subject] == epoch and st.reqs.hand[subject] == SENDING:
            _end_transfer(st, subject, now_s)
    elif kind == DOWN:
        take_down(st, subject, now_s)
    else:
        bring_up(st, subject, now_s)


@compiled
def _end_transfer(st: State, request: int, now_s: float) -> None:
    land(st, request, now_s)
    sender, receiver = st.reqs.prefill_on[request], st.reqs.decode_on[request]
    wake(st, receiver, now_s)
    grant(st, sender, now_s)
    wake(st, sender, now_s)


@entry
def run_all(st: State) -> None:
    """Run the search gear: route every arrival by the rules of the state, then let everything end."""
    for request in range(len(st.reqs.stage)):
        now_s = st.reqs.arrived[request]
        advance(st, now_s)
        route(st, request, now_s)
    advance(st, 1e300)


@entry
def run_part(st: State, first: int, last: int, until_s: float) -> None:
    """Route arrivals `first` to `last` (not among them) by the rules of the state, and let time pass to `until_s`.

    Every request is told of the tokens that it has by then, as the router that relays them knows.
    """
    for request in range(first, last):
        now_s = st.reqs.arrived[request]
        advance(st, now_s)
        route(st, request, now_s)
    advance(st, until_s)
    for worker in range(st.rules.num_workers):
        interrupt(st, worker, until_s)
