"""A stand-in for the simulator that needs no compiler: queues of prompts, and decode batches at their mean size.

Attainment falls with the rate and rises with the workers, which is what the search relies on. Also small questions.
"""

from __future__ import annotations

import numpy as np

from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import StepCost, Table
from sim.cluster import ClusterSpec, LinkSpec, Mode, PoolSpec
from sim.outcome import End, Outcome, Target
from sim.plan import DeviceGroup, PlanQuestion
from sim.workload import Floats, Workload

PROMISE = (Target("chat", ttft_s=0.4, tpot_s=0.04),)


def queue_model(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0) -> Outcome:
    """Run every prompt through the queue of its worker; every output takes the step time of the mean batch."""
    del targets, seed
    prompts = cluster.prefill or cluster.decode
    ttft_s = _waits(prompts, workload)
    busy = (
        0.0 if cluster.prefill else min(0.99, workload.rate * _service_s(prompts, workload).mean() / prompts.replicas)
    )
    step_s = _steady_step_s(cluster.decode, workload, busy)
    size = len(workload)
    done = np.full(size, End.DONE, np.int8)
    zeros = np.zeros(size, np.int32)
    output_s = step_s * (workload.output_tokens - 1)
    return Outcome(
        arrived_s=workload.arrived_s,
        ttft_s=ttft_s,
        tpot_s=np.full(size, step_s),
        e2e_s=ttft_s + output_s,
        max_itl_s=np.full(size, step_s),
        end=done,
        prefill_worker=zeros,
        decode_worker=zeros,
        slo_class=workload.classes(),
        num_preemptions=0,
        num_steps=size,
        blocks_held=0,
        max_queue=0,
        makespan_s=float((workload.arrived_s + ttft_s + output_s).max()),
    )


def _service_s(pool: PoolSpec, workload: Workload) -> Floats:
    by_length = {n: pool.cost.prefill_s(n) for n in np.unique(workload.prompt_tokens).tolist()}
    return np.array([by_length[n] for n in workload.prompt_tokens.tolist()])


def _waits(pool: PoolSpec, workload: Workload) -> Floats:
    service_s = _service_s(pool, workload)
    free_s = np.zeros(pool.replicas)
    ttft_s = np.zeros(len(workload))
    for i, arrived_s in enumerate(workload.arrived_s):
        worker = int(free_s.argmin())
        free_s[worker] = max(free_s[worker], arrived_s) + service_s[i]
        ttft_s[i] = free_s[worker] - arrived_s
    return ttft_s


def _steady_step_s(pool: PoolSpec, workload: Workload, busy: float) -> float:
    outputs = float(workload.output_tokens.mean())
    context = float(workload.prompt_tokens.mean()) + outputs / 2
    arrivals = workload.rate / pool.replicas * outputs / (1 - busy)
    step_s = pool.cost.decode_s(1, int(context))
    for _ in range(60):
        seqs = arrivals * step_s  # Little
        before_s, step_s = step_s, pool.cost.decode_s(max(1, int(seqs)), int(seqs * context))
        if seqs > 10_000 or abs(step_s - before_s) < 1e-4 * step_s:
            break
    return step_s / (1 - busy)


def shape(tensor_parallel: int = 1, *, speed: float = 1.0, capacity: int = 60_000) -> ShapeProfile:
    """Make a parallel size whose steps are `speed` times as fast as those of one device."""
    cost = StepCost(
        dense=Table.line(0.01 / speed, 1e-4 / speed),
        pair=Table.constant(0.0),
        decode_fixed=Table.line(0.01 / speed, 2e-4 / speed),
        decode_context=Table.constant(2e-7 / speed),
    )
    return ShapeProfile(tensor_parallel, 1, cost, capacity, prefill_error=0.05, decode_error=0.03)


def group(
    devices: int = 4, *, nodes: int = 1, price: float = 1.0, shapes: tuple[ShapeProfile, ...] = (), name: str = "small"
) -> DeviceGroup:
    """Make nodes of equal devices in all."""
    shapes = shapes or (shape(), shape(2, speed=1.7, capacity=130_000))
    profile = EngineProfile("m", name, "e", "a test", shapes, kv_bytes_per_token=100_000)
    inner, outer = LinkSpec(bytes_per_s=1e11), LinkSpec(bytes_per_s=1e9)
    return DeviceGroup(profile, nodes, devices // nodes, price, inner, outer)


def requests(count: int = 300, *, seed: int = 0, prompt: int = 400, output: int = 60) -> Workload:
    """Draw requests that arrive once a second on average."""
    rng = np.random.default_rng(seed)
    arrived_s = np.concatenate(([0.0], np.cumsum(rng.exponential(1.0, count - 1))))
    prompts, outputs = rng.integers(1, 2 * prompt, count), rng.integers(1, 2 * output, count)
    return Workload("drawn", arrived_s, prompts.astype(np.int64), outputs.astype(np.int64))


def question(
    *groups: DeviceGroup,
    modes: tuple[Mode, ...] = (Mode.ONE_POOL_CHUNKED, Mode.DISAGGREGATED),
    targets: tuple[Target, ...] = PROMISE,
    rate: float | None = None,
    equal_parallelism: bool = False,
    count: int = 300,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> PlanQuestion:
    """Ask about the groups, by default one node of four devices."""
    return PlanQuestion(
        groups=groups or (group(),),
        targets=targets,
        workload=requests(count),
        rate=rate,
        modes=modes,
        equal_parallelism=equal_parallelism,
        chunk_tokens=(512, 2048),
        seeds=seeds,
    )
