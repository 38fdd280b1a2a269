"""What is measured: the systems, their modules, settings and groups.

Owns the list. Must not know how a system moves bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.kv.iperf3 import is_installed

LIMIT: Final = "limit"
OURS: Final = "Baton"
PEER: Final = "peer"

MEMCPY: Final = "memcpy, scattered, 1 thread"
TCP2: Final = "TCP, 2 plain streams"
PLAIN_GRPC: Final = "gRPC, protobuf bytes, as it comes"
TUNED_GRPC: Final = "gRPC, raw bytes, tuned"
FILES: Final = "files, as ExampleConnector"
NIXL: Final = "NIXL 1.5.1"
MOONCAKE: Final = "Mooncake 0.3.13, TCP"

STAGED_SHM: Final = "shm, copied out"  # as between engines that cannot share a cache: through staging memory
TRANSPORTS: Final = ("shm", STAGED_SHM, "tcp", "grpc")
# glibc keeps freed memory instead of giving it back: fresh message buffers fault on every page otherwise (mallopt(3)).
_KEEP_MEMORY: Final = {
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
}


@dataclass(frozen=True, slots=True)
class System:
    """One way to move blocks."""

    name: str
    group: str
    module: str
    options: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    in_peers_venv: bool = False
    in_turn: bool = False  # the receiver can only begin when the sender is done


def at_seam(transport: str) -> str:
    """Name Baton's transport alone: staging, checksums, acknowledgements, no hand-over around it."""
    return f"Baton {transport}, transport alone"


def whole(transport: str) -> str:
    """Name Baton's whole hand-over: offer, grant, layers, landed, lease ended."""
    return f"Baton {transport}, hand-over"


def options_of(transport: str) -> dict[str, str]:
    """Say what both ends are made with."""
    return {"transport": "shm", "share_cache": ""} if transport == STAGED_SHM else {"transport": transport}


LIMITS: Final = (
    System(MEMCPY, LIMIT, "bench.kv.limits", {"limit": "memcpy"}),
    System(TCP2, LIMIT, "bench.kv.limits", {"limit": "tcp"}),
)
IPERF3: Final = System("iperf3, 2 streams", LIMIT, "bench.kv.iperf3", {"limit": "tcp"})
PEERS: Final[Mapping[str, System]] = {
    "grpc-plain": System(PLAIN_GRPC, PEER, "bench.kv.peers_grpc", {"style": "plain"}),
    "grpc-tuned": System(TUNED_GRPC, PEER, "bench.kv.peers_grpc", {"style": "tuned"}, _KEEP_MEMORY),
    "nixl": System(
        NIXL, PEER, "bench.kv.peers_nixl", env={"NIXL_LOG_LEVEL": "ERROR", "UCX_LOG_LEVEL": "error"}, in_peers_venv=True
    ),
    "mooncake": System(MOONCAKE, PEER, "bench.kv.peers_mooncake", env={"MC_LOG_LEVEL": "ERROR"}, in_peers_venv=True),
    "files": System(FILES, PEER, "bench.kv.peers_files", in_turn=True),
}


def systems(transports: Sequence[str], peers: Sequence[str]) -> Iterator[System]:
    """Yield the limits, Baton over each of `transports`, and the peers named."""
    yield from LIMITS
    if is_installed():
        yield IPERF3
    for transport in transports:
        yield System(at_seam(transport), OURS, "bench.kv.seam", options_of(transport))
        yield System(whole(transport), OURS, "bench.kv.handover", options_of(transport))
    yield from (PEERS[name] for name in peers)
