"""Which transports an engine has, and what it tells its peers of them.

Owns the list of transports by name. Must not know what a hand-over is, nor choose: see kv_transfer.measured_ways.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.errors import ConfigError, CorruptFrame
from kv_transfer.choice import AUTO
from kv_transfer.collective_transport import CollectiveTransport
from kv_transfer.communicator import missing_for
from kv_transfer.grpc_transport import NAME as GRPC
from kv_transfer.nixl_agent import missing_nixl
from kv_transfer.nixl_transport import NixlTransport
from kv_transfer.shared_cache import SharedCache
from kv_transfer.shm_transport import ShmTransport
from kv_transfer.staging import StagingPool
from kv_transfer.tcp_transport import TcpTransport
from kv_transfer.transport import Transport


@dataclass(frozen=True, slots=True)
class TransportContext:
    """What a transport is made from."""

    token: str
    pool: StagingPool
    run_dir: Path  # for sockets
    device: str = "cpu"  # whose memory the KV cache is in, as torch names it
    cache: Sequence[memoryview] = ()  # the KV cache, where the host reads and writes it
    share: Callable[[], SharedCache | None] = lambda: None  # has peers of this host read it, where they can


MakeTransport = Callable[[TransportContext], Transport]
# All and only transports besides gRPC, which every engine has, by the name that `kv.transport` uses.
_FACTORIES: Final[Mapping[str, MakeTransport]] = {
    "nccl": lambda context: CollectiveTransport("nccl", context.token, device=context.device),
    "shm": lambda context: ShmTransport(context.token, context.pool, context.run_dir, context.share()),
    "nixl": lambda context: NixlTransport(context.token, context.pool, context.cache),
    "tcp": lambda context: TcpTransport(context.token),
    "gloo": lambda context: CollectiveTransport("gloo", context.token),
}
# Those that read and write the memory of a device themselves.
DEVICE_TRANSPORTS: Final = frozenset({"nccl", "gloo"})
# What each lacks here, or None: `auto` leaves those out that lack something, and one that is named is an error.
_MISSING: Final[Mapping[str, Callable[[str], str | None]]] = {
    "nccl": lambda device: missing_for("nccl", device),
    "nixl": lambda device: missing_nixl(),
}
_FOR_GPUS: Final = frozenset({"nccl", "nixl"})  # else shm and tcp are faster: docs/benchmarks.md
_NEVER_AUTO: Final = frozenset({"gloo"})  # NCCL's code where there is no GPU: for tests
# With certificates between components, bytes cross a network over transports that ask for them only.
_PLAIN_ON_THE_NETWORK: Final = frozenset({"nccl", "nixl", "tcp", "gloo"})


@dataclass(frozen=True, slots=True)
class PeerTransports:
    """What an engine says of the ways to it."""

    host: str  # equal on two engines that can open each other's memory
    epoch: int
    addresses: Mapping[str, str]  # by the name of the transport

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> PeerTransports:
        """Read what a peer answered. Raises CorruptFrame for anything else."""
        host, epoch, addresses = raw.get("host"), raw.get("epoch"), raw.get("addresses")
        if not isinstance(host, str) or not isinstance(epoch, int) or not isinstance(addresses, dict):
            raise CorruptFrame("a peer described its transports in another form")
        if not all(isinstance(address, str) for address in addresses.values()):
            raise CorruptFrame("a peer named a transport's address that is no text")
        return cls(host, epoch, addresses)


def make_transports(wanted: str, grpc: Transport, context: TransportContext, *, encrypted: bool) -> list[Transport]:
    """Make the transports that `kv.transport` asks for: one and gRPC, or all that are allowed.

    Raises ConfigError when the one that is named is not known, cannot work here, or would cross the network in the
    clear although components are to show certificates.
    """
    if wanted not in (AUTO, GRPC, *_FACTORIES):
        raise ConfigError(f"kv.transport names {wanted}; known are {', '.join((AUTO, *_FACTORIES, GRPC))}")
    if encrypted and wanted in _PLAIN_ON_THE_NETWORK:
        raise ConfigError(f"kv.transport: {wanted} does not encrypt, but `security` is set; name grpc, shm or auto")
    if wanted in _FACTORIES and (missing := _missing(wanted, context)) is not None:
        raise ConfigError(f"kv.transport: {wanted} cannot be used: {missing}; set kv.transport to auto")
    names = [name for name in _FACTORIES if wanted == name or (wanted == AUTO and _suits_auto(name, context))]
    allowed = [name for name in names if not (encrypted and name in _PLAIN_ON_THE_NETWORK)]
    return [*(_FACTORIES[name](context) for name in allowed), grpc]


def _missing(name: str, context: TransportContext) -> str | None:
    asked = _MISSING.get(name)
    return None if asked is None else asked(context.device)


def _suits_auto(name: str, context: TransportContext) -> bool:
    has_gpu = context.device != "cpu"
    return name not in _NEVER_AUTO and (has_gpu or name not in _FOR_GPUS) and _missing(name, context) is None


def host_identity() -> str:
    """Name the kernel and user this process runs under: what shares both can share memory by descriptor."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id}:{os.getuid()}"
