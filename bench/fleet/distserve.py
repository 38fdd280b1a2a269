"""Where DistServe would put prefill and decode: Algorithm 1 of its paper (OSDI 2024, section 4.1), on fixed devices.

Owns the algorithm: each phase alone, its parallel size of most goodput per GPU, then as many of each as balance. The
paper sizes the pools for a rate; here the devices are given, so the rate is what the balance of both carries. Must not
know how goodput is found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from sim.cluster import ClusterSpec, LinkSpec, Mode, PoolSpec
from sim.workload import Workload

_FREE: Final = 1e-9  # of a cost: the other phase takes no time, so that one is seen alone
_NO_BOUND_TOKENS: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase in one parallel size, alone: requests/s that one worker keeps."""

    pool: PoolSpec
    rate: float

    @property
    def per_gpu(self) -> float:
        """Requests/s for each device."""
        return self.rate / self.pool.gpus


def placement(
    like: ClusterSpec,
    pools: Sequence[PoolSpec],
    gpus: int,
    workload: Workload,
    keeps: Callable[[ClusterSpec, Workload], float],
) -> ClusterSpec | None:
    """Place both phases on `gpus` devices; None when no size of a phase keeps the promise even alone.

    `pools` are one worker of each size, `like` has what all placements share, `keeps` finds the goodput of a cluster.
    """
    prompts = replace(workload, output_tokens=np.ones_like(workload.output_tokens))
    prefill = [Phase(pool, keeps(_alone(like, prefill=pool), prompts)) for pool in pools]
    decode = [Phase(pool, keeps(_alone(like, decode=pool), workload)) for pool in pools]
    first, second = (max(phases, key=lambda phase: phase.per_gpu) for phases in (prefill, decode))
    counts = balanced(first, second, gpus)
    if counts is None or not (first.rate and second.rate):
        return None
    return replace(
        like, prefill=replace(first.pool, replicas=counts[0]), decode=replace(second.pool, replicas=counts[1])
    )


def balanced(prefill: Phase, decode: Phase, gpus: int) -> tuple[int, int] | None:
    """Choose the workers of each phase that carry the most together; None when not one of each fits."""
    found = [
        (min(x * prefill.rate, y * decode.rate), x, y)
        for x in range(1, gpus // prefill.pool.gpus + 1)
        if (y := (gpus - x * prefill.pool.gpus) // decode.pool.gpus) >= 1
    ]
    return max(found)[1:] if found else None


def _alone(like: ClusterSpec, *, prefill: PoolSpec | None = None, decode: PoolSpec | None = None) -> ClusterSpec:
    """Make a cluster in which all but one phase is free."""
    return replace(
        like,
        mode=Mode.DISAGGREGATED,
        prefill=prefill or _free(decode),
        decode=decode or _free(prefill),
        link=LinkSpec(kv_bytes_per_token=like.link.kv_bytes_per_token),
    )


def _free(pool: PoolSpec | None) -> PoolSpec:
    if pool is None:
        raise AssertionError("one of both phases must be given")
    cost = pool.cost.scaled(prefill=_FREE, decode=_FREE)
    return replace(pool, cost=cost, kv_capacity_tokens=_NO_BOUND_TOKENS)
