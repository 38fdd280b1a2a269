"""KV blocks: taken by live requests, given back by them, never more than there are."""

from __future__ import annotations

from sim.kernel.compiled import compiled
from sim.kernel.prefixes import shrink
from sim.kernel.state import PREFILL, State


@compiled
def blocks_for(st: State, tokens: int) -> int:
    """Count the blocks that hold `tokens` tokens."""
    return (tokens + st.rules.block_size - 1) // st.rules.block_size


@compiled
def has_blocks(st: State, worker: int, count: int) -> bool:
    """Say whether `count` blocks can be taken; blocks that only cache a prefix can be."""
    return st.workers.used_blocks[worker] + count <= st.pools.kv_blocks[st.workers.pool[worker]]


@compiled
def take_blocks(st: State, worker: int, request: int, count: int) -> None:
    """Give a request `count` blocks of a worker that has them."""
    st.workers.used_blocks[worker] += count
    if st.workers.pool[worker] == PREFILL:
        st.reqs.prefill_blocks[request] += count
    else:
        st.reqs.decode_blocks[request] += count
    if len(st.prefix_start):
        shrink(st, worker)


@compiled
def give_blocks(st: State, worker: int, request: int) -> None:
    """Take back all blocks that a request holds on a worker."""
    if st.workers.pool[worker] == PREFILL:
        st.workers.used_blocks[worker] -= st.reqs.prefill_blocks[request]
        st.reqs.prefill_blocks[request] = 0
    else:
        st.workers.used_blocks[worker] -= st.reqs.decode_blocks[request]
        st.reqs.decode_blocks[request] = 0
