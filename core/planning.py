"""The seam between whoever starts pools and whoever plans them.

Owns what a planner is told of the machines, and what it answers. Must not know how a plan is found (sim) or started
(cluster): either side imports this module and not the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from core.config.models import BatonConfig, PoolsConfig
from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class NodeInventory:
    """What is free on one machine."""

    name: str  # its address
    cpus: float  # cores
    gpus: int
    gpu_kind: str = ""  # "H100" as Ray calls it, or NVML's "NVIDIA H100 80GB HBM3"; empty: not known, or no GPU


@dataclass(frozen=True, slots=True)
class Inventory:
    """All and only the machines that workers can be put on, ordered by name."""

    nodes: tuple[NodeInventory, ...]

    @property
    def has_gpus(self) -> bool:
        """Whether any machine has a GPU free; then GPUs are what is planned with, else cores."""
        return any(node.gpus for node in self.nodes)

    def devices(self, *, cpus_per_worker: float) -> tuple[int, ...]:
        """Count the devices of each node: its GPUs, or without any GPU the workers that its cores suffice for.

        On nodes with GPUs, too few cores for a worker on each GPU leave GPUs out. Raises ConfigError when neither GPUs
        nor cores bound the workers.
        """
        by_cores = [_times(node.cpus, cpus_per_worker) for node in self.nodes]
        if not self.has_gpus:
            if cpus_per_worker <= 0:
                raise ConfigError("plan.cpus: 0 plans for GPUs, and there are none; set how many cores a worker takes")
            return tuple(int(count) for count in by_cores)
        return tuple(int(min(node.gpus, count)) for node, count in zip(self.nodes, by_cores, strict=True))


@dataclass(frozen=True, slots=True)
class PlannedPools:
    """A planner's answer."""

    pools: PoolsConfig
    lines: tuple[str, ...]  # for people: the verdict in one line, then its figures
    plan_json: str  # the whole plan, for programs
    policy: str | None = None  # router.policy that the plan counts on; None: the one configured
    whole_below_tokens: int | None = None  # router.whole_below_tokens that the plan counts on; None: as configured
    shortfall: str = ""  # why these pools, the best there are, do not keep the promise, and which one they would keep


class Planner(Protocol):
    """Chooses pools for the machines at hand."""

    def __call__(self, config: BatonConfig, inventory: Inventory, *, check: Callable[[], None]) -> PlannedPools:
        """Plan for `config`, whose pools are "auto", on `inventory`.

        `check` is to be called every second or so: it raises when the caller was interrupted. Raises ConfigError when
        there is nothing to plan with: no profile, or not even one worker fits.
        """
        ...


def _times(cpus: float, cpus_per_worker: float) -> float:
    """Say how many workers the cores suffice for; without bound if a worker takes none."""
    return (cpus + 1e-6) // cpus_per_worker if cpus_per_worker > 0 else float("inf")
