"""One prefill and one decode worker of a core each, or one pool: what live runs start here, as the simulator has it.

Owns their settings. Must not know what they are asked.
"""

from __future__ import annotations

from typing import Final

from core.latency.profile import EngineProfile
from sim.cluster import ClusterSpec, LinkSpec, Mode, PoolSpec

ONE_POOL_CHUNK: Final = 256  # of one pool on a CPU: the strongest of those measured (docs/benchmarks.md)
PREFILL_CHUNK: Final = 512
MAX_SEQS: Final = 64


def apart(profile: EngineProfile) -> ClusterSpec:
    """Describe one prefill and one decode worker of one core each."""
    return ClusterSpec(
        Mode.DISAGGREGATED,
        decode=_pool(profile, 1, ONE_POOL_CHUNK),
        prefill=_pool(profile, 1, PREFILL_CHUNK),
        link=LinkSpec(kv_bytes_per_token=profile.kv_bytes_per_token),
        block_size=profile.block_size,
        request_overhead_s=profile.request_overhead_s,
        handover_overhead_s=profile.handover_overhead_s,
    )


def one_pool(profile: EngineProfile, size: int) -> ClusterSpec:
    """Describe one engine, as the profile has it for `size` devices."""
    return ClusterSpec(
        Mode.ONE_POOL_CHUNKED,
        decode=_pool(profile, size, ONE_POOL_CHUNK),
        block_size=profile.block_size,
        request_overhead_s=profile.request_overhead_s,
    )


def _pool(profile: EngineProfile, size: int, chunk_tokens: int) -> PoolSpec:
    shape = profile.shape(size)
    return PoolSpec(
        1,
        shape.cost,
        shape.kv_capacity_tokens,
        tensor_parallel=size,
        max_num_seqs=MAX_SEQS,
        max_num_batched_tokens=chunk_tokens,
    )
