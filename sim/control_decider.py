"""The decider of a live controller, made of a configuration: core.control.decider with the simulator's check.

Owns what of the configuration and the profile it is told. Without a profile costs are those that the router learns
(core.control.measured). Must not know who asks it. Implements core.control.actions.DeciderFactory.
"""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

from core.config.models import BatonConfig, PoolConfig, PoolsConfig
from core.control.actions import Decider
from core.control.capacity import ServiceModel, WorkerModel
from core.control.decider import SizingDecider
from core.control.measured import MeasuredDecider, MeasuredService, WorkerLimits
from core.errors import ConfigError
from core.latency.step import StepCost, Table
from core.policy.context import ClassTarget, Tier
from sim.cluster import Admission, ClusterSpec, Mode, PoolSpec, Routing
from sim.control_check import SimulatedSizes
from sim.device_groups import found_devices
from sim.questions import PlanFlags, prepare

# How the router behaves, for the check: it refuses what would be late, and lets decode workers help with prompts.
_ROUTED: Final = ("mode=hybrid", "admission=ttft_and_tpot")
_MOST_CHECKS: Final = 1  # under way at a time


def decider_of(config: BatonConfig) -> Decider:
    """Make the decider of a running configuration, whose pools are named; its check runs on a thread of its own.

    Raises ConfigError for a profile that cannot be read or lacks a pool's size, and for a pool that has no worker.
    """
    pools = config.pools
    if pools == "auto" or not pools.prefill.replicas:
        raise ConfigError("scaling.mode: sizes are of two named pools; set pools.prefill.replicas to at least 1")
    beside = ThreadPoolExecutor(_MOST_CHECKS, thread_name_prefix="sizes-check")
    if config.plan.profile is None and config.plan.gpu is None:
        return _measured(config, pools, beside)
    cluster = _cluster_of(config, pools)
    assert cluster.prefill is not None
    link = cluster.link
    tail_share = 1.0 / link.layers if link.layerwise else 1.0
    model = ServiceModel(
        prefill=_worker(cluster.prefill),
        decode=_worker(cluster.decode),
        classes=tuple(config.slo.classes),
        targets=_targets(config),
        request_overhead_s=cluster.request_overhead_s + cluster.handover_overhead_s + link.latency_s,
        handover_s_per_token=tail_share * link.kv_bytes_per_token / link.bytes_per_s,
    )
    return SizingDecider(model, evaluator=SimulatedSizes(cluster), executor=beside)


def _measured(config: BatonConfig, pools: PoolsConfig, beside: Executor) -> MeasuredDecider:
    """Make the decider of a configuration that names neither profile nor device."""
    service = MeasuredService(
        prefill=_limits(pools.prefill),
        decode=_limits(pools.decode),
        classes=tuple(config.slo.classes),
        targets=_targets(config),
    )
    cluster = ClusterSpec(
        mode=Mode.HYBRID,
        prefill=_unmeasured(pools.prefill),
        decode=_unmeasured(pools.decode),
        routing=Routing(
            admission=Admission.TTFT_AND_TPOT, whole_below_tokens=config.router.whole_below_tokens, overflow=True
        ),
    )
    return MeasuredDecider(
        service, lambda model: SizingDecider(model, evaluator=SimulatedSizes(cluster), executor=beside)
    )


def _cluster_of(config: BatonConfig, named: PoolsConfig) -> ClusterSpec:
    """Build the simulated cluster of the configuration's workers."""
    gpus = sum(pool.replicas * pool.tensor_parallel * pool.pipeline_parallel for pool in (named.prefill, named.decode))
    # All of one machine: the check is of the pools and not of the network.
    prepared = prepare(config, PlanFlags(what_if=_ROUTED), found_devices(config, (gpus,), ""))
    assert prepared.question.fixed is not None
    return prepared.question.fixed


def _targets(config: BatonConfig) -> tuple[ClassTarget, ...]:
    return tuple(
        ClassTarget(slo.ttft_ms / 1e3, slo.tpot_ms / 1e3, Tier(slo.tier), slo.attainment)
        for slo in config.slo.classes.values()
    )


def _worker(pool: PoolSpec) -> WorkerModel:
    return WorkerModel(pool.cost, pool.kv_capacity_tokens, pool.max_num_seqs, pool.max_num_batched_tokens)


def _limits(pool: PoolConfig) -> WorkerLimits:
    return WorkerLimits(pool.max_num_seqs, pool.max_num_batched_tokens)


def _unmeasured(pool: PoolConfig) -> PoolSpec:
    """Describe a pool of which costs and KV come with each check."""
    none = Table.constant(0.0)
    return PoolSpec(
        replicas=max(1, pool.replicas),
        cost=StepCost(none, none, none, none),
        kv_capacity_tokens=0,
        tensor_parallel=pool.tensor_parallel,
        pipeline_parallel=pool.pipeline_parallel,
    )
