"""The worker half's own thread: one event loop with the receiver, the sender and the transports they share.

Owns the staging pool, which transports listen, and what peers are told of them. The engine thread calls the methods
here; each posts to the loop and returns at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from core.component_tls import ComponentTLS
from core.errors import ConfigError, StartFailed
from kv_transfer.block_io import BlockIO
from kv_transfer.choice import AUTO
from kv_transfer.device_blocks import DeviceBlocks
from kv_transfer.digest import SendDigests
from kv_transfer.faults import SendFaults
from kv_transfer.frames import MAX_ID_CHARS, place_header, place_of, transfer_seed
from kv_transfer.grpc_transport import NAME as GRPC
from kv_transfer.grpc_transport import GrpcTransport
from kv_transfer.host_copies import HostCopies
from kv_transfer.landing import ACK_BYTES
from kv_transfer.ledger import LeaseLedger
from kv_transfer.measured_ways import MeasuredWays
from kv_transfer.plan import ReceiveOpen
from kv_transfer.receiver import Receiver, Results
from kv_transfer.sender import Sender
from kv_transfer.stager import GROUP_BYTES, Stager
from kv_transfer.staging import StagingPool
from kv_transfer.transport import Transport
from kv_transfer.ways import DEVICE_TRANSPORTS, PeerTransports, TransportContext, host_identity, make_transports

logger = logging.getLogger(__name__)
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
    ack_bytes: int = ACK_BYTES
    transport: str = AUTO  # as kv.transport names it
    share_cache: bool = True  # peers of this host read it where it lies; no: blocks are copied out when they are staged
    verify_share: float = 0.0  # of hand-overs whose blocks are digested end to end; 0: none
    tls: ComponentTLS | None = None  # between components; None: the token only


class KVEndpoint:
    """Owns the KV thread of one engine rank."""

    def __init__(
        self,
        config: EndpointConfig,
        io: BlockIO,
        faults: SendFaults | None = None,
        *,
        wrap: Callable[[Transport], Transport] = lambda transport: transport,
    ) -> None:
        """Prepare; `wrap` may put something between the endpoint and each of its transports, such as faults.

        Raises ConfigError when the transport cannot be had.
        """
        self.config = config
        self.io = io
        self.faults = faults or SendFaults()
        self.fingerprint = f"{config.fingerprint}|{io.layout}"
        self.ledger = LeaseLedger(time.monotonic)
        self.receiver = Receiver(
            io, fingerprint=self.fingerprint, ledger=self.ledger, wait_s=config.lease_s, ack_bytes=config.ack_bytes
        )
        self._loop = asyncio.new_event_loop()
        self._pool = StagingPool(config.staging_bytes)
        self._grpc = GrpcTransport(self._control, token=config.token, port=config.port, tls=config.tls)
        context = TransportContext(
            config.token,
            self._pool,
            Path(config.endpoint_file).parent,
            io.device_name,
            io.host_memory,
            io.share if config.share_cache else lambda: None,
        )
        made = make_transports(config.transport, self._grpc, context, encrypted=config.tls is not None)
        # Between devices where a transport can, and then through the host only for a transport that cannot.
        self._device = io.device if DEVICE_TRANSPORTS & {transport.name for transport in made} else None
        if self._device is not None:
            made = [each if each.name in DEVICE_TRANSPORTS else HostCopies(each) for each in made]
        self._transports = [wrap(transport) for transport in made]
        self.digests = SendDigests(io, share=config.verify_share)
        self._addresses: dict[str, str] = {}  # all and only transports that listen
        self._ways = MeasuredWays(self._transports, self._ask, host=host_identity(), transport=config.transport)
        self.sender = Sender(
            self._loop,
            self._ways,
            self._grpc.refuse,
            ledger=self.ledger,
            pool=self._pool,
            digests=self.digests,
        )
        self._stager = Stager(io, self.sender, config.group_bytes)
        self._thread = threading.Thread(target=self._run, name="baton-kv", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether the KV thread runs."""
        return self._thread.is_alive()

    def start(self) -> str:
        """Listen and write the endpoint file; return the address. Raises StartFailed."""
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        try:
            address = starting.result(_START_TIMEOUT_S)
        except (OSError, ConfigError, TimeoutError) as exc:
            raise StartFailed(f"the KV endpoint of {self.config.worker_id} did not start: {exc}") from exc
        _write_atomically(Path(self.config.endpoint_file), json.dumps({"address": address, "layout": self.io.layout}))
        return address

    def expect(self, opened: ReceiveOpen) -> None:
        """Register reserved blocks."""
        if self.io.device is not None:
            self.io.device.reserve()
        self._loop.call_soon_threadsafe(self.receiver.expect, opened)

    def stage(
        self,
        transfer_id: str,
        layer: int,
        first_block: int,
        block_ids: Sequence[int],
        faults: SendFaults | None = None,
        *,
        stays: bool = False,
    ) -> None:
        """Take blocks of one layer for a hand-over; they are the caller's again on return.

        With `stays` they may be left in the cache, and are the caller's when `sender.let_go` or `call_back` says so.
        """
        self.digests.add(transfer_id, layer, first_block, block_ids)
        if self._device is not None and faults is None:
            self._stage_on_device(self._device, transfer_id, layer, first_block, block_ids)
        else:
            self._stager.stage(transfer_id, layer, first_block, block_ids, faults, stays=stays)

    def finish(self, transfer_id: str) -> None:
        """Note that the last block of a hand-over was staged."""
        self._stager.flush()
        self.sender.finish(transfer_id)

    def _stage_on_device(
        self,
        device: DeviceBlocks,
        transfer_id: str,
        layer: int,
        first_block: int,
        block_ids: Sequence[int],
    ) -> None:
        """Gather to memory of the device; the segment bounds it, and takes a copy if the bytes must go by the host."""
        num_blocks = len(block_ids)
        segment = self.sender.take(transfer_id, num_blocks * self.io.block_bytes)
        if segment is None:
            return
        buffer = device.gather(layer, block_ids, place_of(transfer_seed(transfer_id), layer, first_block))
        header = place_header(layer, first_block, num_blocks, segment.view.nbytes)
        self.sender.put(
            transfer_id,
            segment,
            layer=layer,
            first_block=first_block,
            num_blocks=num_blocks,
            header=header,
            device=buffer,
        )

    def end_step(self) -> None:
        """Let everything leave that the engine's step has staged; its next step may overwrite the blocks.

        Before the hand-overs that the step completes `finish`.
        """
        self._stager.flush()
        if self._device is not None:
            self._device.end_step()

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
        """Stop the server and the thread; idempotent. The cache stays shared: a process that goes on closes `io`."""
        if not self._thread.is_alive():
            return
        try:
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(5.0)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
            if not self._thread.is_alive():
                self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _listen(self) -> str:
        """Start every transport that this machine can do; return the address of the control calls.

        Raises OSError when the transport that is named, or gRPC, cannot listen.
        """
        for transport in self._transports:
            try:
                self._addresses[transport.name] = await transport.listen(self.config.host, self.receiver.serve)
            except (ConfigError, OSError) as exc:
                if transport.name in (GRPC, self.config.transport):
                    raise
                logger.warning("KV transport %s is not used here: %s", transport.name, exc)
        return self._addresses[GRPC]

    async def _shut(self) -> None:
        await self.sender.close()
        await self._ways.close()
        for transport in self._transports:
            await transport.close()
        self._pool.close()

    async def _ask(self, peer: str) -> PeerTransports:
        return PeerTransports.parse(await self._grpc.call(peer, "transports", {}))

    async def _control(self, verb: str, arguments: dict[str, str]) -> dict[str, object]:
        if verb == "cancel" and len(arguments["transfer_id"]) <= MAX_ID_CHARS:
            self.receiver.refuse(arguments["transfer_id"], arguments["reason"])
            self.sender.abort(arguments["transfer_id"], arguments["reason"])
            return {}
        if verb == "stats":
            return self.stats()
        if verb == "transports":
            return {"host": host_identity(), "epoch": self.config.epoch, "addresses": self._addresses}
        if verb == "faults":
            if self.faults.runtime:
                self.faults = SendFaults.parse(arguments | {"runtime": "1"})
                self._ways.leave_out(self.faults.left_out)
                self.receiver.quarantine.forgive()
            return {"taken": bool(self.faults.runtime)}
        raise ValueError(f"the call {verb[:20]!r} is not known here")

    def stats(self) -> dict[str, object]:
        """Report ledger and counters."""
        now_s = time.monotonic()
        leases = [
            asdict(lease) | {"age_s": now_s - lease.granted_s, "silent_s": now_s - lease.progress_s}
            for lease in self.ledger.open_leases
        ]
        return {
            "blocks": asdict(self.ledger.blocks()),
            "bytes": asdict(self.ledger.bytes()),
            "imbalance_blocks": self.ledger.blocks().imbalance,
            "imbalances": self.ledger.imbalances,
            "leases": leases,
            "states": dict(self.ledger.reached),
            "receives": self.receiver.counts,
            "sends": self.sender.counts,
            "resumed": self.sender.resumed,
            "mismatches": self.receiver.quarantine.mismatches,
            "digests": self.digests.count,
            "quarantined": [asdict(sender) for sender in self.receiver.quarantine.report()],
            "bytes_sent": self.sender.bytes_sent,
            "bytes_uncopied": self.sender.bytes_uncopied,
            "bytes_landed": self.receiver.bytes_landed,
            "staged_bytes": self.sender.staged_bytes,
            "cached_bytes": self.sender.cached_bytes,
            "overlap": asdict(self.sender.overlap),
            **self._ways.stats(),
        }


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
