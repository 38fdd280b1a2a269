"""Many workers in one process: `python -m bench.control_plane.workers`, told by JSON lines, telling by JSON lines.

Owns their start and end. Each has an engine that only keeps time and a session server at a port of its own, which are
those of a worker process; what they hand over arrives in this process. Must not know who tells it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from dataclasses import asdict, dataclass, replace
from typing import Final

from cluster.session_server import SessionServer
from cluster.worker import RoleWorker
from core.types import Role
from core.worker_spec import WorkerSpec
from engine.simulated import Deliveries, SimulatedEngine

_LINE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Running:
    engine: SimulatedEngine
    worker: RoleWorker
    server: SessionServer
    address: str

    async def end(self) -> None:
        await self.server.stop(0.0)
        await self.engine.close()


class Workers:
    """The workers that run here; tells what becomes of each by `tell`."""

    def __init__(self) -> None:
        self._deliveries = Deliveries()
        self._running: dict[str, _Running] = {}

    async def obey(self, order: dict[str, str]) -> dict[str, object]:
        """Carry one order out; return the event that it led to."""
        match order:
            case {"command": "start", "spec": text}:
                return await self._start(WorkerSpec.from_json(text))
            case {"command": "role", "worker": worker_id, "role": role}:
                found = self._running[worker_id]
                found.worker.take_role(Role(role))
                return self._told("role", found, num_legs=found.worker.num_legs)
            case {"command": "end", "worker": worker_id}:
                await self._running.pop(worker_id).end()
                return {"event": "ended", "worker": worker_id}
        raise ValueError(f"no order is {order}")

    async def close(self) -> None:
        """End every worker."""
        running = list(self._running.values())
        self._running.clear()
        for one in running:
            await one.end()

    async def _start(self, spec: WorkerSpec) -> dict[str, object]:
        engine = await SimulatedEngine.start(spec, self._deliveries)
        worker = RoleWorker(spec, engine)
        server = SessionServer(worker, host=spec.host, port=spec.port, token=spec.token)
        address = f"{spec.host}:{await server.start()}"
        found = self._running[spec.worker_id] = _Running(engine, worker, server, address)
        return self._told("ready", found)

    def _told(self, event: str, found: _Running, **more: object) -> dict[str, object]:
        hello = found.worker.hello
        return {
            "event": event,
            "worker": hello.worker_id,
            "address": found.address,
            "node": socket.gethostname(),
            "hello": asdict(replace(hello)),
            **more,
        }


async def serve() -> None:
    """Obey until standard input ends."""
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    workers = Workers()
    try:
        while line := await reader.readline():
            told = await workers.obey(json.loads(line))
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()
    finally:
        await workers.close()


if __name__ == "__main__":
    asyncio.run(serve())
