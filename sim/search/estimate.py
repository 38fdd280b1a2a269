"""About what rate a cluster carries: M/G/1 for prefill, Little's law for decode.

Owns the guess that orders clusters, centres the splits that are tried and seeds the bisection. A wrong guess costs
time, never correctness. Must not simulate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from core.latency.step import StepCost
from sim.cluster import ClusterSpec, PoolSpec
from sim.search.bounds import Demand, lanes, tabulated
from sim.workload import Floats


@dataclass(slots=True, eq=False)
class Estimates:
    """Estimates of many clusters under one workload."""

    demand: Demand
    _service: dict[StepCost, Floats] = field(default_factory=dict)
    _prefill: dict[StepCost, float] = field(default_factory=dict)
    _decode: dict[tuple[StepCost, int, int], float] = field(default_factory=dict)

    def rate(self, cluster: ClusterSpec) -> float:
        """Return requests per second, above 0."""
        if cluster.prefill is None:
            return max(1e-6, self._shared(cluster.decode) * lanes(cluster.decode))
        return max(1e-6, min(self._pools(cluster, cluster.prefill)))

    def imbalance(self, cluster: ClusterSpec) -> float:
        """Return by how many times one pool of a disaggregated cluster carries more than the other, from 1."""
        if cluster.prefill is None:
            return 1.0
        slow, fast = sorted(self._pools(cluster, cluster.prefill))
        return fast / slow

    def _pools(self, cluster: ClusterSpec, prefill: PoolSpec) -> tuple[float, float]:
        decode_rate = self.decode_rate(cluster.decode) * lanes(cluster.decode)
        return self.prefill_rate(prefill) * lanes(prefill), decode_rate

    def prefill_rate(self, pool: PoolSpec) -> float:
        """Return what one lane prefills within the TTFT target: M/G/1 with an exponential tail of the wait.

        The mean wait is lambda * E[S^2] / (2 * (1 - rho)) (Pollaczek and Khinchine); its share beyond w is taken as
        rho * exp(-rho * w / mean).
        """
        if pool.cost not in self._prefill:
            self._prefill[pool.cost] = self._m_g_1(self._service_s(pool.cost))
        return self._prefill[pool.cost]

    def _m_g_1(self, service_s: Floats) -> float:
        share = min(target.attainment for target in self.demand.targets)
        room_s = self.demand.ttft_s - float(np.quantile(service_s, share))
        mean_s, square = float(service_s.mean()), float((service_s**2).mean())
        low, high = 0.0, 1 / mean_s
        for _ in range(40):
            rate = (low + high) / 2
            busy = rate * mean_s
            wait_s = rate * square / (2 * (1 - busy))
            late = busy * math.exp(-busy * room_s / wait_s) if room_s > 0 and wait_s > 0 else busy
            low, high = (rate, high) if late <= 1 - share else (low, rate)
        return max(low, 0.02 / mean_s)

    def decode_rate(self, pool: PoolSpec) -> float:
        """Return what one lane decodes within the TPOT target: by Little, at the largest batch in time."""
        key = (pool.cost, pool.max_num_seqs, pool.kv_capacity_tokens)
        if key not in self._decode:
            seqs, step_s = self._steps(pool)
            in_time = np.flatnonzero(step_s <= self.demand.tpot_s)
            most = int(in_time[-1]) if len(in_time) else 0
            self._decode[key] = float(seqs[most] / (step_s[most] * max(1.0, self.demand.output.mean())))
        return self._decode[key]

    def _steps(self, pool: PoolSpec) -> tuple[Floats, Floats]:
        weight = self.demand.output / self.demand.output.sum()
        context = float((weight * (self.demand.prompt + self.demand.output / 2)).sum())
        most = max(1, min(pool.max_num_seqs, int(pool.kv_capacity_tokens / context)))
        seqs: Floats = np.arange(1, most + 1, dtype=np.float64)
        per_token_s = tabulated(pool.cost.decode_context, seqs)
        return seqs, tabulated(pool.cost.decode_fixed, seqs) + per_token_s * seqs * context

    def _shared(self, pool: PoolSpec) -> float:
        """Return what one lane of one pool carries: prompts take their time first, decode has the rest."""
        seqs, step_s = self._steps(pool)
        outputs, prompt_s = max(1.0, float(self.demand.output.mean())), float(self._service_s(pool.cost).mean())
        rates = 1 / (prompt_s + outputs * step_s / seqs)
        in_time = seqs / (rates * outputs) <= self.demand.tpot_s  # Little: sequences = rate * outputs * TPOT
        return float(rates[in_time].max(initial=0.02 / (prompt_s + outputs * float(step_s[0]))))

    def _service_s(self, cost: StepCost) -> Floats:
        if cost not in self._service:
            demand = self.demand
            dense, pair = tabulated(cost.dense, demand.tokens), tabulated(cost.pair, demand.tokens)
            self._service[cost] = np.maximum(dense + pair * demand.pairs + cost.prefill_seq_s, 1e-9)
        return self._service[cost]
