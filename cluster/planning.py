"""From the nodes of Ray to the pools that a planner chooses for them.

Owns what the planner is told, what of its answer becomes configuration, and the refusal of a promise that cannot be
kept. Must not know how pools are chosen, nor Ray's API: nodes come in as values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.placement import Node, gpu_kind
from core.config.checks import check_typed
from core.config.models import BatonConfig
from core.config.problems import ConfigErrors
from core.errors import ConfigError
from core.planning import Inventory, NodeInventory, PlannedPools, Planner

NO_PLANNER = "pools: auto: no planner is at hand; name both pools, or bring them up with `baton up`"
REMEDY = "change slo.classes, give Ray more devices, or name the pools yourself: those start whatever is promised"


@dataclass(frozen=True, slots=True)
class PlannedConfig:
    """A configuration whose pools were planned, with the plan."""

    config: BatonConfig
    lines: tuple[str, ...]  # for people
    plan_json: str


def take_inventory(nodes: Sequence[Node]) -> Inventory:
    """Say what is free on each node, as a planner is told."""
    machines = [
        NodeInventory(
            name=node.address,
            cpus=node.free.get("CPU", 0.0),
            gpus=int(node.free.get("GPU", 0)),
            gpu_kind=gpu_kind(node),
        )
        for node in nodes
    ]
    return Inventory(tuple(sorted(machines, key=lambda machine: machine.name)))


def describe_inventory(inventory: Inventory, *, cpus_per_worker: float) -> str:
    """Write an inventory in a few words: `2 nodes with 8 H100`."""
    counts: Counter[str] = Counter()
    for node, devices in zip(inventory.nodes, inventory.devices(cpus_per_worker=cpus_per_worker), strict=True):
        kind = (node.gpu_kind or "GPU") if inventory.has_gpus else f"CPU worker{_s(devices)}"
        counts[f"{devices} {kind}"] += 1
    found = ", ".join(f"{count} node{_s(count)} with {what}" for what, count in sorted(counts.items()))
    return found if inventory.has_gpus else f"{found} of {cpus_per_worker:g} core{_s(cpus_per_worker)}"


def plan_pools(
    config: BatonConfig, nodes: Sequence[Node], planner: Planner | None, *, base: Path, check: Callable[[], None]
) -> PlannedConfig:
    """Have the pools of `config` planned for `nodes`.

    Raises ConfigError without a planner, when the promise cannot be kept, or when the plan makes no valid
    configuration, and whatever `check` or the planner raises.
    """
    if planner is None:
        raise ConfigError(NO_PLANNER)
    inventory = take_inventory(nodes)
    answer = planner(config, inventory, check=check)
    check()
    if answer.shortfall:
        found = describe_inventory(inventory, cpus_per_worker=config.plan.cpus)
        head = f"pools: auto: no pools on {found} keep the promise"
        raise ConfigError("\n  ".join([head, *answer.shortfall.splitlines(), REMEDY]))
    planned = _with_answer(config, answer)
    problems = check_typed(planned, source="the plan", base=base)
    if problems:
        raise ConfigErrors(problems)
    return PlannedConfig(planned, answer.lines, answer.plan_json)


def _s(count: float) -> str:
    return "" if count == 1 else "s"


def _with_answer(config: BatonConfig, answer: PlannedPools) -> BatonConfig:
    counted_on = {"policy": answer.policy, "whole_below_tokens": answer.whole_below_tokens}
    router = config.router.model_copy(update={key: value for key, value in counted_on.items() if value is not None})
    return config.model_copy(update={"pools": answer.pools, "router": router})
