"""The decider of a live controller, made of a configuration: core.control.decider with the simulator's check.

Owns what of the configuration and the profile it is told. Must not know who asks it. Implements
core.control.actions.DeciderFactory.
"""

from __future__ import annotations

from typing import Final

from core.config.models import BatonConfig
from core.control.actions import Decider
from core.control.capacity import ServiceModel, WorkerModel
from core.control.decider import SizingDecider
from core.errors import ConfigError
from core.policy.context import ClassTarget, Tier
from sim.cluster import ClusterSpec, PoolSpec
from sim.control_check import SimulatedSizes
from sim.device_groups import found_devices
from sim.questions import PlanFlags, prepare

# How the router behaves, for the check: it refuses what would be late, and lets decode workers help with prompts.
_ROUTED: Final = ("mode=hybrid", "admission=ttft_and_tpot")


def decider_of(config: BatonConfig) -> Decider:
    """Make the decider of a running configuration, whose pools are named.

    Raises ConfigError when there is no profile to reckon with, or a pool that has no worker.
    """
    cluster = _cluster_of(config)
    assert cluster.prefill is not None
    link = cluster.link
    tail_share = 1.0 / link.layers if link.layerwise else 1.0
    model = ServiceModel(
        prefill=_worker(cluster.prefill),
        decode=_worker(cluster.decode),
        classes=tuple(config.slo.classes),
        targets=tuple(
            ClassTarget(slo.ttft_ms / 1e3, slo.tpot_ms / 1e3, Tier(slo.tier), slo.attainment)
            for slo in config.slo.classes.values()
        ),
        request_overhead_s=cluster.request_overhead_s + cluster.handover_overhead_s + link.latency_s,
        handover_s_per_token=tail_share * link.kv_bytes_per_token / link.bytes_per_s,
    )
    return SizingDecider(model, evaluator=SimulatedSizes(cluster))


def _cluster_of(config: BatonConfig) -> ClusterSpec:
    """Build the simulated cluster of the configuration's workers."""
    if config.pools == "auto" or not config.pools.prefill.replicas:
        raise ConfigError("scaling.mode: sizes are of two named pools; set pools.prefill.replicas to at least 1")
    pools = (config.pools.prefill, config.pools.decode)
    gpus = sum(pool.replicas * pool.tensor_parallel * pool.pipeline_parallel for pool in pools)
    # All of one machine: the check is of the pools and not of the network.
    prepared = prepare(config, PlanFlags(what_if=_ROUTED), found_devices(config, (gpus,), ""))
    assert prepared.question.fixed is not None
    return prepared.question.fixed


def _worker(pool: PoolSpec) -> WorkerModel:
    return WorkerModel(pool.cost, pool.kv_capacity_tokens, pool.max_num_seqs, pool.max_num_batched_tokens)
