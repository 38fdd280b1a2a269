"""What a planner is told of the machines."""

from __future__ import annotations

import pytest

from core.errors import ConfigError
from core.planning import Inventory, NodeInventory


def node(cpus: float, gpus: int = 0) -> NodeInventory:
    return NodeInventory("10.0.0.1", cpus, gpus)


@pytest.mark.parametrize(
    ("nodes", "cpus_per_worker", "devices"),
    [
        ((node(8), node(3)), 2, (4, 1)),
        ((node(0.3),), 0.1, (3,)),  # 0.3 // 0.1 is 2 in floating point
        ((node(64, gpus=8), node(64)), 4, (8, 0)),
        ((node(8, gpus=8),), 4, (2,)),
        ((node(8, gpus=8),), 0, (8,)),
        ((), 1, ()),
    ],
)
def test_devices_are_gpus_where_there_are_any_else_workers_that_the_cores_suffice_for(
    nodes: tuple[NodeInventory, ...], cpus_per_worker: float, devices: tuple[int, ...]
) -> None:
    assert Inventory(nodes).devices(cpus_per_worker=cpus_per_worker) == devices


def test_workers_that_nothing_bounds_cannot_be_counted() -> None:
    with pytest.raises(ConfigError, match=r"plan\.cpus"):
        Inventory((node(8),)).devices(cpus_per_worker=0)
