"""`python -m bench.router.mock_process`: the engines of every system in one process, two prefill and two decode each.

Owns the process: it tells its addresses as one line of JSON, takes new timings as lines `TTFT_US ITL_US` on its
standard input, and ends with it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from dataclasses import asdict, dataclass

import uvloop

from bench.router.http_mock import HttpMock
from bench.router.session_mock import HandoverTable, MockWorker
from bench.router.stepping import Batch, Timing
from cluster.membership import MembershipServer
from cluster.session_server import SessionServer
from core.types import Membership, Role, WorkerRecord

HOST = "127.0.0.1"
WORKERS_PER_ROLE = 2
_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the mock engines are."""

    membership: str  # host:port, for Baton's router
    prefill_ports: tuple[int, ...]  # HTTP, for the peers
    decode_ports: tuple[int, ...]

    def to_json(self) -> str:
        """Serialise in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Addresses:
        """Parse what `to_json` wrote."""
        raw = json.loads(line)
        return cls(raw["membership"], tuple(raw["prefill_ports"]), tuple(raw["decode_ports"]))


async def serve_http(role: Role, timing: Timing) -> int:
    """Start a mock engine for the peers; return its port. It lives as long as the loop."""
    batch = Batch(timing)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HttpMock(role, timing, batch), HOST, 0, backlog=_BACKLOG)
    return int(server.sockets[0].getsockname()[1])


class SessionMocks:
    """Mock workers for Baton's router, and the membership that announces them."""

    def __init__(self) -> None:
        self._membership = MembershipServer(host=HOST)
        self._servers: list[SessionServer] = []

    async def start(self, timing: Timing) -> str:
        """Start all; return the address of the membership service."""
        handovers = HandoverTable()
        records = []
        for role in Role:
            for number in range(WORKERS_PER_ROLE):
                worker_id = f"{role.value}-{number}"
                worker = MockWorker(worker_id, role, timing=timing, handovers=handovers)
                server = SessionServer(worker, host=HOST)
                self._servers.append(server)
                port = await server.start()
                records.append(WorkerRecord(worker_id, role, 1, f"{HOST}:{port}", "here"))
        port = await self._membership.start()
        self._membership.publish(Membership(1, tuple(records)))
        return f"{HOST}:{port}"


async def _run() -> None:
    timing = Timing()
    prefill = [await serve_http(Role.PREFILL, timing) for _ in range(WORKERS_PER_ROLE)]
    decode = [await serve_http(Role.DECODE, timing) for _ in range(WORKERS_PER_ROLE)]
    sessions = SessionMocks()
    addresses = Addresses(await sessions.start(timing), tuple(prefill), tuple(decode))
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    sys.stdout.write(addresses.to_json() + "\n")
    sys.stdout.flush()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        timing.ttft_us, timing.itl_us = map(int, line.split())
        sys.stdout.write("set\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(_run())
