"""The events to come, earliest first; equal times in the order they were pushed, so that runs repeat."""

from __future__ import annotations

from sim.kernel.compiled import compiled
from sim.kernel.state import HEAP_SIZE, PUSHED, State

STEP_END, STAGE_FREE, SENT, DOWN, UP = range(5)  # kinds of events


@compiled
def push(st: State, time_s: float, kind: int, subject: int, epoch: int) -> None:
    """Add an event: `subject` is a lane, a worker or a request, `epoch` tells it from void ones."""
    events = st.events
    i = st.counts[HEAP_SIZE]
    st.counts[HEAP_SIZE] = i + 1
    st.counts[PUSHED] += 1
    while i > 0:
        parent = (i - 1) >> 1
        if events.time_s[parent] <= time_s:  # an equal time was pushed earlier
            break
        _move(st, parent, i)
        i = parent
    events.time_s[i] = time_s
    events.kind[i] = kind
    events.subject[i] = subject
    events.epoch[i] = epoch
    events.order[i] = st.counts[PUSHED]


@compiled
def pop(st: State) -> None:
    """Take the earliest event away; the caller has read it at place 0."""
    last = st.counts[HEAP_SIZE] - 1
    st.counts[HEAP_SIZE] = last
    i = 0
    while last > 0:
        child = 2 * i + 1
        if child >= last:
            break
        if child + 1 < last and _before(st, child + 1, child):
            child += 1
        if not _before(st, child, last):
            break
        _move(st, child, i)
        i = child
    if i != last:
        _move(st, last, i)


@compiled
def _before(st: State, i: int, j: int) -> bool:
    events = st.events
    if events.time_s[i] != events.time_s[j]:
        return bool(events.time_s[i] < events.time_s[j])
    return bool(events.order[i] < events.order[j])


@compiled
def _move(st: State, source: int, to: int) -> None:
    events = st.events
    events.time_s[to] = events.time_s[source]
    events.kind[to] = events.kind[source]
    events.subject[to] = events.subject[source]
    events.epoch[to] = events.epoch[source]
    events.order[to] = events.order[source]
