"""A cluster that the user names (what-if): which devices it takes, and whether they are there."""

from __future__ import annotations

from core.errors import ConfigError
from sim.cluster import ClusterSpec, PoolSpec
from sim.plan import PlanQuestion
from sim.search.placements import Placement, fit_together


def fixed_placement(question: PlanQuestion, cluster: ClusterSpec) -> Placement:
    """Place the pools on the groups of their devices. Raises ConfigError when they do not fit."""
    pools = tuple(pool for pool in (cluster.prefill, cluster.decode) if pool is not None)
    groups = tuple(_group_of(question, pool) for pool in pools)
    for index in set(groups):
        demands = [
            (question.groups[index].profile.shape(pool.tensor_parallel, pool.pipeline_parallel), pool.replicas)
            for pool, group in zip(pools, groups, strict=True)
            if group == index
        ]
        group = question.groups[index]
        if not fit_together(group, demands):
            wanted = " and ".join(f"{count} x {shape.gpus}" for shape, count in demands)
            raise ConfigError(
                f"what-if: workers of {wanted} devices do not fit {group.nodes} nodes of {group.devices_per_node}; "
                "name fewer or smaller workers, or more devices (--gpus)"
            )
    price = sum(pool.gpus * question.groups[g].price_per_hour for pool, g in zip(pools, groups, strict=True))
    first = question.groups[groups[0]]
    spanned = cluster.prefill is not None and (len(set(groups)) > 1 or cluster.gpus > first.devices_per_node)
    return Placement(cluster, groups, price, nodes_spanned=spanned)


def _group_of(question: PlanQuestion, pool: PoolSpec) -> int:
    for index, group in enumerate(question.groups):
        if pool.device in ("", group.profile.device):
            return index
    known = ", ".join(group.profile.device for group in question.groups)
    raise ConfigError(f"what-if: no device {pool.device!r} among those of the plan: {known}")
