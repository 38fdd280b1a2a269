"""The worker half's own thread: one event loop with the receiver, the sender and the server they share.

The engine thread calls the methods here; each posts to the loop and returns at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from core.component_tls import ComponentTLS
from core.errors import StartFailed
from kv_transfer.block_io import BlockIO
from kv_transfer.faults import SendFaults
from kv_transfer.frames import MAX_ID_CHARS
from kv_transfer.grpc_transport import GrpcPeers, GrpcServer
from kv_transfer.ledger import LeaseLedger
from kv_transfer.plan import ReceiveOpen
from kv_transfer.receiver import Receiver, Results
from kv_transfer.sender import GROUP_BYTES, Sender

_START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """What the worker tells the connector; see core.worker_spec.KVSpec."""

    worker_id: str
    epoch: int
    host: str
    port: int
    endpoint_file: str
    fingerprint: str
    token: str
    lease_s: float
    staging_bytes: int
    group_bytes: int = GROUP_BYTES
    tls: ComponentTLS | None = None  # between components; None: the token only


class KVEndpoint:
    """Owns the KV thread of one engine rank."""

    def __init__(self, config: EndpointConfig, io: BlockIO, faults: SendFaults | None = None) -> None:
        self.config = config
        self.io = io
        self.faults = faults or SendFaults()
        self.fingerprint = f"{config.fingerprint}|{io.layout}"
        self.ledger = LeaseLedger(time.monotonic)
        self.receiver = Receiver(io, fingerprint=self.fingerprint, ledger=self.ledger)
        self._loop = asyncio.new_event_loop()
        self._peers = GrpcPeers(config.token, config.tls)
        self.sender = Sender(
            self._loop,
            self._peers,
            ledger=self.ledger,
            staging_bytes=config.staging_bytes,
            group_bytes=config.group_bytes,
        )
        self._server = GrpcServer(self._serve, self._control, token=config.token, tls=config.tls)
        self._thread = threading.Thread(target=self._run, name="baton-kv", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the KV thread runs."""
        return self._thread.is_alive()

    def start(self) -> str:
        """Listen and write the endpoint file; return the address. Raises StartFailed."""
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(self._server.start(self.config.host, self.config.port), self._loop)
        try:
            port = starting.result(_START_TIMEOUT_S)
        except (OSError, TimeoutError) as exc:
            raise StartFailed(f"the KV endpoint of {self.config.worker_id} did not start: {exc}") from exc
        address = f"{self.config.host}:{port}"
        _write_atomically(Path(self.config.endpoint_file), json.dumps({"address": address, "layout": self.io.layout}))
        return address

    def expect(self, opened: ReceiveOpen) -> None:
        """Register reserved blocks."""
        self._loop.call_soon_threadsafe(self.receiver.expect, opened)

    def cancel_receive(self, transfer_id: str) -> None:
        """Give up an expected hand-over."""
        self._loop.call_soon_threadsafe(self.receiver.cancel, transfer_id)

    def wait_results(self, timeout_s: float) -> None:
        """Wait until an expected hand-over has ended, if there is one."""
        self.receiver.wait_results(timeout_s)

    def take_results(self) -> Results:
        """Take the hand-overs that ended since the last call."""
        return self.receiver.take_results()

    def close(self) -> None:
        """Stop the server and the thread; idempotent."""
        if not self._thread.is_alive():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(5.0)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _shut(self) -> None:
        await self.sender.close()
        await self._server.stop()
        await self._peers.close()

    def _serve(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        return self.receiver.serve(messages, wait_s=self.config.lease_s)

    async def _control(self, verb: str, arguments: dict[str, str]) -> dict[str, object]:
        if verb == "cancel" and len(arguments["transfer_id"]) <= MAX_ID_CHARS:
            self.receiver.refuse(arguments["transfer_id"], arguments["reason"])
            self.sender.abort(arguments["transfer_id"], arguments["reason"])
            return {}
        if verb == "stats":
            return self.stats()
        if verb == "faults":
            if self.faults.runtime:
                self.faults = SendFaults.parse(arguments | {"runtime": "1"})
            return {}
        raise ValueError(f"the call {verb[:20]!r} is not known here")

    def stats(self) -> dict[str, object]:
        """Report ledger and counters."""
        now_s = time.monotonic()
        leases = [asdict(lease) | {"age_s": now_s - lease.granted_s} for lease in self.ledger.open_leases]
        return {
            "blocks": asdict(self.ledger.blocks()),
            "bytes": asdict(self.ledger.bytes()),
            "imbalance_blocks": self.ledger.blocks().imbalance,
            "leases": leases,
            "receives": self.receiver.counts,
            "sends": self.sender.counts,
            "bytes_sent": self.sender.bytes_sent,
            "bytes_landed": self.receiver.bytes_landed,
            "staged_bytes": self.sender.staged_bytes,
            "overlap": asdict(self.sender.overlap),
        }


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
