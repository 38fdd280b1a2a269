"""The highest rate at which so many workers of a role keep the promise, by the latency model and queueing formulas.

Owns the estimate. Either pool may miss half of what the promise allows to be missed. Prefill: a prompt waits for one of
the pool's workers (M/G/c: the chance to wait by Sakasegawa, 1977, the length of the wait by Allen and Cunneen), is
computed, sent, and waits for a decode step. Decode: by Little's law, at the largest batch whose steps are in time and
whose KV fits, less what a batch varies by chance. Must not simulate, and must not know what workers there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from core.control.demand import Demand, Floats
from core.latency.step import StepCost, Table
from core.policy.context import ClassTarget

_ROOMS: Final = 33  # quantiles of the time that prompts have to wait
_BISECTIONS: Final = 30
_DEVIATIONS: Final = 1.65  # 95 % of a normal variable lie below
_STEPS_TO_JOIN: Final = 1.5  # what has landed waits for half a step, then for its own
_MOST_BUSY: Final = 0.98


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """One worker of a role."""

    cost: StepCost
    kv_capacity_tokens: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """What the estimate, and a simulation beside it, are made of."""

    prefill: WorkerModel
    decode: WorkerModel
    classes: tuple[str, ...]
    targets: tuple[ClassTarget, ...]  # one for each class
    request_overhead_s: float = 0.0  # in every TTFT
    handover_s_per_token: float = 0.0  # KV sent after prefill has ended


@dataclass(frozen=True, slots=True, eq=False)
class Capacities:
    """Requests a second that keep the promise, by number of workers: entry n is for n of them, entry 0 is 0."""

    prefill: Floats
    decode: Floats
    hopeless: float  # share of requests that no number of workers serves in time; they count in no rate

    def rate(self, prefill: int, decode: int) -> float:
        """Return what both pools together keep."""
        last = len(self.prefill) - 1  # more workers than were estimated carry no less
        return float(min(self.prefill[min(prefill, last)], self.decode[min(decode, last)]))


def capacities(model: ServiceModel, demand: Demand, most: int) -> Capacities:
    """Estimate both pools of up to `most` workers."""
    alone_s, busy_s = _prompt_s(model.prefill, demand)
    ttft_s, tpot_s, missing = _by_request(model, demand)
    room_s = ttft_s - alone_s - model.request_overhead_s - _STEPS_TO_JOIN * tpot_s
    room_s -= model.handover_s_per_token * demand.prompt_tokens
    hopeful = room_s > 0
    if not hopeful.any():
        return Capacities(np.zeros(most + 1), _decode_rates(model, demand, most), 1.0)
    weight = demand.weight[hopeful] / demand.weight[hopeful].sum()
    return Capacities(
        prefill=_prefill_rates(busy_s, demand.weight, room_s[hopeful], weight, float(missing @ demand.weight), most),
        decode=_decode_rates(model, demand, most),
        hopeless=float(demand.weight[~hopeful].sum()),
    )


def _by_request(model: ServiceModel, demand: Demand) -> tuple[Floats, Floats, Floats]:
    """Return each request's targets, and the share of its class that either pool may miss."""
    ttft = np.array([target.ttft_s for target in model.targets])
    tpot = np.array([target.tpot_s for target in model.targets])
    missing = np.array([(1.0 - target.attainment) / 2 for target in model.targets])
    return ttft[demand.slo_class], tpot[demand.slo_class], np.maximum(missing, 1e-3)[demand.slo_class]


def _prompt_s(worker: WorkerModel, demand: Demand) -> tuple[Floats, Floats]:
    """Return the time of each prompt alone on a worker, and its share of a full step beside other prompts."""
    cost, budget = worker.cost, float(worker.max_num_batched_tokens)
    tokens = np.maximum(1.0, demand.prompt_tokens - demand.cached_tokens)
    attention_s = tabulated(cost.pair, np.minimum(tokens, budget)) * tokens * (demand.cached_tokens + tokens / 2)
    in_steps_s = np.floor(tokens / budget) * cost.dense(budget) + np.where(
        tokens % budget > 0, tabulated(cost.dense, tokens % budget), 0.0
    )
    shared_s = tokens * cost.dense(budget) / budget
    return in_steps_s + attention_s + cost.prefill_seq_s, shared_s + attention_s + cost.prefill_seq_s


def _prefill_rates(
    busy_s: Floats, weight: Floats, room_s: Floats, room_weight: Floats, missing: float, most: int
) -> Floats:
    mean_s = float(weight @ busy_s)
    varied = (1.0 + float(weight @ (busy_s - mean_s) ** 2) / mean_s**2) / 2  # (1 + cv^2) / 2
    rooms = _quantiles(room_s, room_weight)
    workers = np.arange(1, most + 1, dtype=np.float64)
    low, high = np.zeros(most), np.full(most, _MOST_BUSY)  # share of the time that the workers are busy
    for _ in range(_BISECTIONS):
        busy = (low + high) / 2
        waits = busy ** (np.sqrt(2 * (workers + 1)) - 1)
        pace = workers * (1 - busy) / (mean_s * varied)
        late = waits * np.exp(-rooms[:, None] * pace).mean(axis=0)
        low, high = np.where(late <= missing, busy, low), np.where(late <= missing, high, busy)
    return np.concatenate(([0.0], low * workers / mean_s))


def _decode_rates(model: ServiceModel, demand: Demand, most: int) -> Floats:
    worker = model.decode
    outputs = np.maximum(1.0, demand.output_tokens * demand.decode_factor)
    spent = demand.weight * outputs
    context = float(spent @ (demand.prompt_tokens + outputs / 2)) / float(spent.sum())
    largest = max(1, min(worker.max_num_seqs, int(worker.kv_capacity_tokens / max(1.0, context))))
    batch = np.arange(1, largest + 1, dtype=np.float64)
    step_s = tabulated(worker.cost.decode_fixed, batch) + tabulated(worker.cost.decode_context, batch) * batch * context
    tightest_s = min(model.targets[number].tpot_s for number in np.unique(demand.slo_class))
    in_time = int(np.count_nonzero(step_s <= tightest_s))
    if not in_time:
        return np.zeros(most + 1)
    workers = np.arange(1, most + 1, dtype=np.float64)
    # Of `limit` sequences a batch varies by the root of its mean, shared by the workers among which arrivals choose.
    spread = _DEVIATIONS / np.sqrt(workers)
    mean = np.maximum(1.0, (np.sqrt(in_time + spread**2 / 4) - spread / 2) ** 2)
    per_worker = mean / (np.interp(mean, batch, step_s) * float(spent.sum()))
    return np.concatenate(([0.0], workers * per_worker))


def _quantiles(values: Floats, weight: Floats) -> Floats:
    order = np.argsort(values)
    share = np.cumsum(weight[order]) - weight[order] / 2
    found: Floats = np.interp((np.arange(_ROOMS) + 0.5) / _ROOMS, share, values[order])
    return found


def tabulated(table: Table, at: Floats) -> Floats:
    """Evaluate a table at many points."""
    knots, values = np.array(table.at), np.array(table.value)
    inside: Floats = np.interp(at, knots, values)
    beyond: Floats = np.maximum(at - knots[-1], 0.0) * table.slope_beyond
    return inside + beyond
