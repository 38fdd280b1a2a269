"""How far pools may be resized; what the keeper does with sizes is tested in test_controller."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster import ray_runtime
from cluster.cluster_events import EventLog
from cluster.members import Member, Members
from cluster.placement import Node
from cluster.pool_keeper import PoolKeeper
from cluster.worker_keeper import WorkerKeeper
from core.control.actions import PoolSizes, SizeLimits
from core.control.reconcile import Phase
from core.types import Role
from tests.support.controlled_cluster import config, order_of
from tests.support.local_actors import HERE

NODE = Node("n1", HERE, {"CPU": 5.0}, {"CPU": 5.0})  # room for one more than the four that there are
LIMITED = ("scaling.decode.max=9",)
MADE = (*LIMITED, "ray.wait_for_nodes_s=60")


class Pools:
    """A keeper of four workers, each of one core, none of which runs."""

    def __init__(self, folder: Path, *changes: str) -> None:
        made = config(folder, *changes)
        order = order_of(made, [NODE], folder)
        self.members = Members(lambda _: None)
        log = EventLog(time.monotonic)
        self.keeper = WorkerKeeper(order, self.members, log, lambda: None)
        for placement in order.placements:
            self.members.table[placement.worker_id] = Member(
                placement.worker_id, placement.role, Phase.READY, "", placement=placement
            )
        self.pools = PoolKeeper(order, self.members, self.keeper, log)

    async def limits(self) -> SizeLimits:
        return await self.pools.limits()

    def leave_waiting(self, for_s: float) -> None:
        member = self.keeper.add("decode-2", Role.DECODE)
        member.placeless_since_s = time.monotonic() - for_s


@pytest.fixture(autouse=True)
def one_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").write_text("{}")
    monkeypatch.setattr(ray_runtime, "alive_nodes", lambda: (NODE,))


async def test_without_an_autoscaler_there_is_the_room_that_there_is(tmp_path: Path) -> None:
    assert await Pools(tmp_path, *LIMITED).limits() == SizeLimits(PoolSizes(1, 1), PoolSizes(5, 5), 5)


async def test_a_pool_grows_to_its_configured_size_on_nodes_that_are_made(tmp_path: Path) -> None:
    assert await Pools(tmp_path, *MADE).limits() == SizeLimits(PoolSizes(1, 1), PoolSizes(5, 9), None)


async def test_an_autoscaler_that_leaves_a_worker_waiting_is_not_counted_on(tmp_path: Path) -> None:
    pools = Pools(tmp_path, *MADE)
    pools.leave_waiting(for_s=30.0)
    assert (await pools.limits()).most.decode == 9
    pools.leave_waiting(for_s=61.0)
    assert (await pools.limits()).most.decode == 6
