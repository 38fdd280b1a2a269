"""A controller over two pools of simulated workers and a router; everything is real but Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from cluster.cluster_status import ClusterStatus, DeciderFactory, MemberStatus, StartOrder
from cluster.controller import Controller
from cluster.placement import Node, place_workers
from core.config.load import load_config
from core.config.models import BatonConfig
from tests.support.local_actors import HERE, LocalRay

START_S = 60.0
BACK_S = 60.0  # a machine that is busy with other tests starts a worker in this time
POLL_S = 1.0


def config(folder: Path, *changes: str) -> BatonConfig:
    settings = (
        f"model.path={folder / 'demo'}",
        "router.port=0",
        "pools.prefill.replicas=2",
        "pools.decode.replicas=2",
        "healing.first_delay_s=0.05",
        "healing.max_failures=3",
        "healing.set_aside_s=2",
        "slo.classes.interactive.ttft_ms=60000",
        "slo.classes.interactive.tpot_ms=60000",
    )
    return load_config(None, overrides=[*settings, *changes], environ={})


def order_of(
    made: BatonConfig,
    nodes: Sequence[Node],
    folder: Path,
    *,
    engine_args: tuple[str, ...] = (),
    decider: DeciderFactory | None = None,
) -> StartOrder:
    """Order simulated workers on these nodes; all that runs keeps its files in `folder`."""
    return StartOrder(
        config=made,
        placements=place_workers(made, nodes),
        engine_kind="simulated",
        engine_args=engine_args,
        base=str(folder),
        run_dir=str(folder),
        node_id="n1",
        address=HERE,
        token="secret",
        env_vars={},
        decider=decider,
    )


class Cluster:
    """A controller that has started, and what tests ask of it."""

    def __init__(self, order: StartOrder, ray: LocalRay, folder: Path) -> None:
        self.order = order
        self.ray = ray
        self.folder = folder
        self.controller = Controller(order)
        self.url = ""

    async def start(self) -> None:
        self.url = "http://" + await self.controller.start(START_S)

    async def status(self) -> ClusterStatus:
        return await self.controller.status()

    async def member(self, name: str) -> MemberStatus:
        return next(m for m in (await self.status()).members if m.name == name)

    async def serving(self) -> dict[str, str]:
        """Ask the router which workers it has, with their role and epoch."""
        async with httpx.AsyncClient(timeout=5) as client:
            answer = await client.get(self.url + "/workers")
        return {w["worker_id"]: f"{w['role']} {w['epoch']}" for w in answer.json()["workers"]}

    async def wait(self, **workers: str | None) -> float:
        """Wait until the router has these workers in this role and epoch, None: not at all; return the seconds."""
        wanted = {name.replace("_", "-"): what for name, what in workers.items()}
        began_s = time.monotonic()
        while True:
            try:
                found = await self.serving()
            except httpx.HTTPError:
                found = {}
            if found and all(found.get(name) == what for name, what in wanted.items()):
                return time.monotonic() - began_s
            assert time.monotonic() - began_s < BACK_S, (found, wanted, await self.status())
            await asyncio.sleep(0.01)  # the router tells nobody of its workers

    async def apply(self, *changes: str, only_plan: bool = False) -> tuple[str, ...]:
        changed = config(self.folder, *changes)
        rollout = await self.controller.apply(changed, self.order.base, only_plan)
        if not only_plan:
            await self.settled()
        return rollout.lines

    async def settled(self) -> None:
        deadline_s = time.monotonic() + BACK_S
        while waits := await self.controller.settled(POLL_S):
            assert time.monotonic() < deadline_s, (waits, await self.status())

    async def done(self, name: str, epoch: int) -> None:
        async with asyncio.timeout(BACK_S):
            while not (await self.controller.progress_of(name, epoch, POLL_S)).is_done:
                pass

    async def make_anew(self) -> None:
        """Lose the controller and have another in its place, as Ray does."""
        lost = self.controller
        for task in [
            t for t in asyncio.all_tasks() if t.get_name().startswith(("follow", "pools", "scaling", "hosts", "job"))
        ]:
            task.cancel()
        if lost._saving is not None:
            lost._saving.cancel()
        await lost._server.stop()
        self.ray.is_made_anew = True
        self.controller = Controller(self.order)
