"""The simulator as the controller's check of sizes: the search gear on the demand that is expected.

Owns how a demand becomes a workload, and how much of it is enough. Implements core.control.sizing.Evaluator.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from core.control.actions import PoolSizes
from core.control.capacity import ServiceModel, WorkerModel
from core.control.demand import Demand
from sim.cluster import ClusterSpec, PoolSpec
from sim.outcome import Target
from sim.simulate import simulate
from sim.workload import Workload

_HORIZON_S: Final = 600.0
_LEAST_REQUESTS: Final = 500
_MOST_REQUESTS: Final = 6000  # 30 ms of one core
_STAYS: Final = 4  # times a request stays until pools are in their steady state
_MOST_WORKERS: Final = 32  # of larger pools a slice is simulated, with its share of the requests


class SimulatedSizes:
    """Simulates sizes of one kind of cluster."""

    def __init__(self, cluster: ClusterSpec, *, seed: int = 0) -> None:
        """Take what link and routing are; how many workers there are, and what they cost, comes with each demand."""
        if cluster.prefill is None:
            raise ValueError("sizes are of two pools; give a cluster with a prefill pool")
        self._cluster, self._prefill, self._seed = cluster, cluster.prefill, seed

    def attained(self, model: ServiceModel, demand: Demand, sizes: PoolSizes) -> tuple[float, ...]:
        """See Evaluator. Equal arguments give equal shares, and every size meets the same requests."""
        parts = max(1, round((sizes.prefill + sizes.decode) / _MOST_WORKERS))
        cluster = replace(
            self._cluster,
            prefill=_pool(self._prefill, model.prefill, round(sizes.prefill / parts)),
            decode=_pool(self._cluster.decode, model.decode, round(sizes.decode / parts)),
            prefix_cache=False,  # the sample says what is cached
            outages=(),
        )
        targets = tuple(
            Target(name, target.ttft_s, target.tpot_s, target.attainment)
            for name, target in zip(model.classes, model.targets, strict=True)
        )
        workload, skip = self._workload(model, demand, demand.rate / parts)
        return simulate(cluster, workload, targets).attainment(targets, skip=skip)

    def _workload(self, model: ServiceModel, demand: Demand, rate: float) -> tuple[Workload, int]:
        """Draw Poisson arrivals with the sample's lengths; and say how many come before the steady state."""
        slowest_s = max(target.ttft_s for target in model.targets)
        stay_s = slowest_s + demand.mean_output * max(target.tpot_s for target in model.targets)
        warm = rate * _STAYS * stay_s / 2
        size = int(min(max(rate * _HORIZON_S, 1.0), max(2 * warm, _LEAST_REQUESTS), _MOST_REQUESTS))
        rng = np.random.default_rng([self._seed, size])
        chosen = rng.choice(len(demand), size, p=demand.weight)
        prompt = np.maximum(1.0, demand.prompt_tokens - demand.cached_tokens)[chosen]
        output = np.maximum(1.0, demand.output_tokens * demand.decode_factor)[chosen]
        workload = Workload(
            "expected",
            np.cumsum(rng.exponential(1.0 / rate, size)),
            prompt.astype(np.int64),
            np.rint(output).astype(np.int64),
            demand.slo_class[chosen],
        )
        return workload, min(int(warm), size // 2)


def _pool(pool: PoolSpec, worker: WorkerModel, replicas: int) -> PoolSpec:
    """Take workers as they are reckoned with."""
    return replace(
        pool,
        replicas=max(1, replicas),
        cost=worker.cost,
        kv_capacity_tokens=worker.kv_capacity_tokens,
        max_num_seqs=worker.max_num_seqs,
        max_num_batched_tokens=worker.max_num_batched_tokens,
    )
