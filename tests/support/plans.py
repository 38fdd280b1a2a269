"""Questions and plans for tests of what is made of them."""

from __future__ import annotations

import numpy as np

from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import StepCost, Table
from sim.cluster import ClusterSpec, Mode, PoolSpec, Routing
from sim.outcome import Target
from sim.plan import (
    Candidate,
    DeviceGroup,
    Interval,
    Plan,
    PlanQuestion,
    RatePoint,
    SearchStats,
    Shortfall,
    Verdict,
)
from sim.report import Setting
from sim.workload import Workload

COST = StepCost(Table.line(0.01, 1e-4), Table.constant(1e-9), Table.line(0.015, 1e-4), Table.constant(1e-7))
CHAT, BATCH = Target("chat", 0.4, 0.04), Target("batch", 10.0, 0.2, attainment=0.8)
SETTING = Setting(model="m", traffic="chat: 3,000 requests", source="measured")


def profile(*sizes: int, device: str = "gpu-a", model: str = "m") -> EngineProfile:
    shapes = tuple(ShapeProfile(tp, 1, COST.scaled(prefill=1 / tp), 40_000 * tp, 0.05, 0.03) for tp in sizes or (1,))
    return EngineProfile(model, device, "vllm 1.0", "measured", shapes, kv_bytes_per_token=1000)


def question(*targets: Target, rate: float | None = None, groups: int = 1) -> PlanQuestion:
    devices = tuple(DeviceGroup(profile(device=f"gpu-{'abc'[i]}"), 2, 4) for i in range(groups))
    ones = np.ones(4, np.int64)
    return PlanQuestion(devices, targets or (CHAT,), Workload("w", np.arange(4.0), ones * 9, ones), rate=rate)


def pool(replicas: int, tp: int = 1, chunk: int = 2048) -> PoolSpec:
    return PoolSpec(replicas, COST, 40_000 * tp, tensor_parallel=tp, max_num_batched_tokens=chunk)


def apart(prefill: int = 3, decode: int = 5, *, routing: Routing | None = None, hybrid: bool = False) -> ClusterSpec:
    mode = Mode.HYBRID if hybrid else Mode.DISAGGREGATED
    return ClusterSpec(mode, pool(decode), pool(prefill, chunk=8192), routing=routing or Routing())


def together(replicas: int = 8, *, tp: int = 1, chunk: int = 2048) -> ClusterSpec:
    return ClusterSpec(Mode.ONE_POOL_CHUNKED, pool(replicas, tp, chunk))


def candidate(
    cluster: ClusterSpec, goodput: tuple[float, float, float], *, classes: int = 1, group: tuple[int, ...] = (0, 0)
) -> Candidate:
    shares = tuple(Interval(0.88, 0.912, 0.94) for _ in range(classes))
    return Candidate(cluster, group, Interval(*goodput), shares, float(cluster.gpus))


def plan(
    *,
    verdict: Verdict = Verdict.DISAGGREGATE,
    p_d: Candidate | None = None,
    one: Candidate | None = None,
    front: tuple[Candidate, ...] = (),
    curve: tuple[RatePoint, ...] = (),
    shortfall: Shortfall | None = None,
    notes: tuple[str, ...] = (),
    ratio: Interval | None = None,
    own_policy: tuple[float, float] | None = None,
) -> Plan:
    best = one if verdict is Verdict.ONE_POOL or p_d is None else p_d
    stats = SearchStats(120, 100, 20, 90_000, 3.217)
    return Plan(verdict, best, one, p_d, front, curve, shortfall, None, stats, notes, ratio, own_policy)
