"""The lists of requests: two for each worker, doubly linked through the requests, so that any may leave in O(1).

List w is what waits on worker w; list num_workers + w is what has landed there and joins its next step.
"""

from __future__ import annotations

from sim.kernel.compiled import compiled
from sim.kernel.state import MAX_QUEUE, NOBODY, State


@compiled
def append(st: State, queue: int, request: int) -> None:
    """Put a request at the end."""
    insert_after(st, queue, st.queues.tail[queue], request)


@compiled
def prepend(st: State, queue: int, request: int) -> None:
    """Put a request at the front."""
    insert_after(st, queue, NOBODY, request)


@compiled
def insert_after(st: State, queue: int, before: int, request: int) -> None:
    """Put a request behind `before`, or at the front if that is NOBODY."""
    after = st.queues.head[queue] if before == NOBODY else st.reqs.next[before]
    st.reqs.prev[request], st.reqs.next[request] = before, after
    if before == NOBODY:
        st.queues.head[queue] = request
    else:
        st.reqs.next[before] = request
    if after == NOBODY:
        st.queues.tail[queue] = request
    else:
        st.reqs.prev[after] = request
    st.reqs.queue[request] = queue
    st.queues.length[queue] += 1
    st.counts[MAX_QUEUE] = max(st.counts[MAX_QUEUE], st.queues.length[queue])


@compiled
def insert_by_key(st: State, queue: int, request: int) -> None:
    """Put a request where `key` rises; equal keys in the order they came. Looks from the end."""
    before = st.queues.tail[queue]
    while before != NOBODY and st.reqs.key[before] > st.reqs.key[request]:
        before = st.reqs.prev[before]
    insert_after(st, queue, before, request)


@compiled
def remove(st: State, request: int) -> None:
    """Take a request out of the list it is in, if any."""
    queue = st.reqs.queue[request]
    if queue == NOBODY:
        return
    before, after = st.reqs.prev[request], st.reqs.next[request]
    if before == NOBODY:
        st.queues.head[queue] = after
    else:
        st.reqs.next[before] = after
    if after == NOBODY:
        st.queues.tail[queue] = before
    else:
        st.reqs.prev[after] = before
    st.reqs.queue[request] = NOBODY
    st.queues.length[queue] -= 1
