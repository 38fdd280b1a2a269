"""Which transports an engine has, and the plainest choice among them: in the order of the configuration.

Owns the list of transports by name and what peers said of theirs. Must not know what a hand-over is.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError, KVTransferError, TransferAborted, Unauthorized
from kv_transfer.grpc_transport import NAME as GRPC
from kv_transfer.staging import StagingPool
from kv_transfer.transport import Outgoing, Transport


@dataclass(frozen=True, slots=True)
class TransportContext:
    """What a transport is made from."""

    worker_id: str
    epoch: int
    token: str
    pool: StagingPool


MakeTransport = Callable[[TransportContext], Transport]
# All and only transports besides gRPC, which every engine has, by the name that `kv.transport` uses.
FACTORIES: Mapping[str, MakeTransport] = {}


@dataclass(frozen=True, slots=True)
class PeerTransports:
    """What an engine says of the ways to it."""

    host: str  # equal on two engines that can open each other's memory
    epoch: int
    addresses: Mapping[str, str]  # by the name of the transport

    @classmethod
    def parse(cls, reply: Mapping[str, object]) -> PeerTransports:
        """Read the answer to the control call. Raises KeyError or TypeError when it is not one."""
        host, epoch, addresses = reply["host"], reply["epoch"], reply["addresses"]
        if not isinstance(host, str) or not isinstance(epoch, int) or not isinstance(addresses, dict):
            raise TypeError("host, epoch or addresses are malformed")
        return cls(host, epoch, {str(name): str(address) for name, address in addresses.items()})


Ask = Callable[[str], Awaitable[PeerTransports]]


def make_transports(names: Sequence[str], context: TransportContext) -> list[Transport]:
    """Make the transports of an engine except gRPC. Raises ConfigError for a name that is not known."""
    unknown = sorted(set(names) - set(FACTORIES) - {GRPC})
    if unknown:
        raise ConfigError(f"kv.transport names {unknown}; known are {sorted((*FACTORIES, GRPC))}")
    return [FACTORIES[name](context) for name in names if name != GRPC]


def host_identity() -> str:
    """Name the kernel and user this process runs under: what shares both can share memory by descriptor."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id}:{os.getuid()}"


class OrderedWays:
    """Takes the first transport that both ends have and that has not failed; implements kv_transfer.sender.Ways."""

    def __init__(self, transports: Sequence[Transport], ask: Ask) -> None:
        self._transports = transports  # the owner's own list: it takes out those that cannot listen
        self._ask = ask
        self._peers: dict[str, PeerTransports] = {}  # what peers said since their last failure

    async def open(self, peer: str, *, attempt: int, failed: frozenset[str], timeout_s: float) -> tuple[str, Outgoing]:
        """Open a stream; the last transport is tried again when all have failed. Raises TransferAborted."""
        addresses = await self._addresses(peer)
        shared = [transport for transport in self._transports if transport.name in addresses]
        error: Exception | None = None
        for transport in [way for way in shared if way.name not in failed] or shared[-1:]:
            try:
                return transport.name, await transport.connect(addresses[transport.name], timeout_s)
            except (KVTransferError, Unauthorized) as exc:
                self.failed(peer, transport.name)
                error = exc
        raise TransferAborted(f"no way to {peer} is open: {error}") from error

    def done(self, peer: str, name: str, num_bytes: int, seconds: float) -> None:
        """Do nothing: the order is fixed."""

    def failed(self, peer: str, name: str) -> None:
        """Ask again next time: the peer may be another process by then."""
        self._peers.pop(peer, None)

    async def _addresses(self, peer: str) -> Mapping[str, str]:
        if [transport.name for transport in self._transports] == [GRPC]:
            return {GRPC: peer}
        known = self._peers.get(peer)
        if known is None:
            known = self._peers[peer] = await self._ask(peer)
        return known.addresses
