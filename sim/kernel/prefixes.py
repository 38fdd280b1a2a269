"""The prefix cache of each worker: which prefix blocks it still holds, least recently used first out.

A cached block takes room that nothing else needs: whatever live requests hold comes first.
"""

from __future__ import annotations

from sim.kernel.compiled import compiled
from sim.kernel.state import NOBODY, State


@compiled
def cached_tokens(st: State, worker: int, request: int) -> int:
    """Count the leading prompt tokens of a request that `worker` holds; one token is always left to compute."""
    prefixes = st.prefixes
    if len(st.prefix_start) == 0:
        return 0
    hits = 0
    for i in range(st.prefix_start[request], st.prefix_start[request + 1]):
        if not prefixes.cached[worker, st.prefix_ids[i]]:
            break
        hits += 1
    return min(hits * st.rules.prefix_tokens, st.reqs.prompt[request] - 1)


@compiled
def remember(st: State, worker: int, request: int) -> None:
    """Note that the worker has the whole prompt of a request; make room for it."""
    prefixes = st.prefixes
    if len(st.prefix_start) == 0:
        return
    # From the end, so that the head of a prefix is always younger than what follows it.
    for i in range(st.prefix_start[request + 1] - 1, st.prefix_start[request] - 1, -1):
        block = st.prefix_ids[i]
        if prefixes.cached[worker, block]:
            _unlink(st, worker, block)
        _link_newest(st, worker, block)
    shrink(st, worker)


@compiled
def shrink(st: State, worker: int) -> None:
    """Forget the least recently used blocks until the rest fits beside what live requests hold."""
    free = st.pools.kv_blocks[st.workers.pool[worker]] - st.workers.used_blocks[worker]
    while st.workers.num_cached[worker] * st.rules.prefix_kv_blocks > free and st.workers.oldest[worker] != NOBODY:
        _unlink(st, worker, st.workers.oldest[worker])


@compiled
def forget_all(st: State, worker: int) -> None:
    """Lose the cache, as a restart does."""
    while st.workers.oldest[worker] != NOBODY:
        _unlink(st, worker, st.workers.oldest[worker])


@compiled
def _link_newest(st: State, worker: int, block: int) -> None:
    prefixes = st.prefixes
    last = st.workers.newest[worker]
    prefixes.older[worker, block], prefixes.newer[worker, block] = last, NOBODY
    if last == NOBODY:
        st.workers.oldest[worker] = block
    else:
        prefixes.newer[worker, last] = block
    st.workers.newest[worker] = block
    prefixes.cached[worker, block] = 1
    st.workers.num_cached[worker] += 1


@compiled
def _unlink(st: State, worker: int, block: int) -> None:
    prefixes = st.prefixes
    older, newer = prefixes.older[worker, block], prefixes.newer[worker, block]
    if older == NOBODY:
        st.workers.oldest[worker] = newer
    else:
        prefixes.newer[worker, older] = newer
    if newer == NOBODY:
        st.workers.newest[worker] = older
    else:
        prefixes.older[worker, newer] = older
    prefixes.cached[worker, block] = 0
    st.workers.num_cached[worker] -= 1
