"""A small cluster in this process: simulated engines behind real session servers, and a router at a free port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from cluster.pool import WorkerPool
from cluster.session_server import SessionServer
from cluster.worker import RoleWorker
from core.component_tls import ComponentTLS
from core.engine import HttpCall, ReplySink
from core.router_spec import RouterSpec
from core.types import Membership, Role, WorkerRecord
from core.worker_spec import EngineSpec, WorkerSpec
from engine.simulated import SimulatedEngine
from router.server import RouterServer

WAIT_S = 10.0
MODEL = "sim"
FAST = ("--step-ms", "1", "--step-ms-per-seq", "0", "--transfer-ms", "1")
TOKEN = "secret"
NEVER = ("--transfer-ms", "60000")  # a decode leg waits for its KV until it is told not to


Script = Callable[[HttpCall, ReplySink], Awaitable[None]]


class WatchedEngine(SimulatedEngine):
    """Remembers which hand-overs were called off, and answers by a script instead when it is given one."""

    def __init__(self, spec: WorkerSpec, *arguments: Any) -> None:
        super().__init__(spec, *arguments)
        self.cancelled: dict[str, str] = {}
        self.calls: list[HttpCall] = []
        self.script: Script | None = None

    async def serve(self, call: HttpCall, sink: ReplySink) -> None:
        self.calls.append(call)
        await (super().serve if self.script is None else self.script)(call, sink)

    async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        self.cancelled[transfer_id] = reason
        await super().cancel_transfer(transfer_id, reason)


class Announced:
    """A membership that a test changes as it goes."""

    def __init__(self) -> None:
        self._membership = Membership(0)
        self._changed = asyncio.Event()

    def set(self, *workers: WorkerRecord) -> None:
        self._membership = Membership(self._membership.version + 1, workers)
        self._changed.set()

    async def watch(self) -> AsyncIterator[Membership]:
        while True:
            self._changed.clear()
            yield self._membership
            await self._changed.wait()


class SiteWorker:
    """One worker with its socket; `kill` is the death of its process as a router sees it."""

    def __init__(self, record: WorkerRecord, engine: WatchedEngine, role: RoleWorker, server: SessionServer) -> None:
        self.record = record
        self.engine = engine
        self.role = role
        self._server = server

    @property
    def is_idle(self) -> bool:
        state = self.role.state()
        return not (self._server.num_calls or state.num_running or state.num_waiting or state.kv_blocks_used)

    def cut_sessions(self) -> None:
        """Close every connection, as a network does that fails for a moment."""
        for session in list(self._server._sessions):
            session.cut_off()

    async def kill(self) -> None:
        await self._server.stop(0)
        await self.engine.close()


class Site:
    """Workers and one router."""

    def __init__(self, tls: ComponentTLS | None = None) -> None:
        self.workers: dict[str, SiteWorker] = {}
        self.announced = Announced()
        self.pool = WorkerPool(self.announced, token=TOKEN, tls=tls.for_clients() if tls else None)
        self._tls = tls
        self.url = ""
        self.router: RouterServer

    async def add_worker(self, worker_id: str, *flags: str, **engine: Any) -> SiteWorker:
        """Start a worker, announce it and wait until the router is connected to it."""
        role = Role(worker_id.partition("-")[0])
        engine_spec = replace(EngineSpec("simulated", "", MODEL, extra_args=(*FAST, *flags)), **engine)
        spec = WorkerSpec(worker_id, role, 1, "127.0.0.1", "", engine_spec)
        simulated = await WatchedEngine.start(spec)
        role_worker = RoleWorker(spec, simulated)
        tls = self._tls.for_servers() if self._tls else None
        server = SessionServer(role_worker, host="127.0.0.1", token=TOKEN, tls=tls)
        port = await server.start()
        record = WorkerRecord(worker_id, role, 1, f"127.0.0.1:{port}", "here")
        worker = self.workers[worker_id] = SiteWorker(record, simulated, role_worker, server)
        self.announced.set(*(w.record for w in self.workers.values()))
        await self.until(lambda: worker_id in self.connected())
        return worker

    def connected(self) -> set[str]:
        return {w.record.worker_id for w in self.pool.view().workers}

    async def start_router(self, **settings: Any) -> None:
        self.router = RouterServer(replace(RouterSpec("127.0.0.1", "", ""), **settings), self.pool)
        self.url = "http://" + await self.router.start()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that comes with or soon after a change of the cluster's view."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await self.pool.wait_changed(0.02)

    async def until_healthy(self, client: httpx.AsyncClient) -> None:
        """Wait until another router of this cluster is ready."""
        async with asyncio.timeout(WAIT_S):
            while (await client.get("/health")).status_code != 200:
                await self.pool.wait_changed(0.02)

    async def until_idle(self) -> None:
        """Wait until no worker runs anything and no request's task is left."""
        dispatcher = self.router.dispatcher

        def idle() -> bool:
            return all(w.is_idle for w in self.workers.values()) and not dispatcher.num_inflight

        await self.until(idle)

    async def stop(self) -> None:
        await self.router.stop()
        for worker in self.workers.values():
            await worker.kill()

    async def metric(self, name: str, **labels: str) -> float:
        """Sum the samples of one name that carry these labels."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            text = (await client.get("/metrics")).text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
