"""The seam between hand-overs and the ways their bytes travel.

A transport moves frames in order and says when the peer is gone. It knows nothing of leases, of what a hand-over is or
of when one ends; sender and receiver know nothing of sockets. Every transport passes one contract test suite.

KV goes from staged memory of the sender, or from its cache, straight into rows of the receiver's cache. A payload stays
as it is until the peer has acknowledged it or its stream is closed or revoked; what a transport that reads it later
than that may land is found out by its checksum.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kv_transfer.frames import Header

if TYPE_CHECKING:
    import torch

    from kv_transfer.cached_blocks import CachedBlocks
    from kv_transfer.device_blocks import DeviceBuffer


@dataclass(frozen=True, slots=True)
class StagedFrame:
    """One BLOCKS frame that waits in staging memory, or in the cache for a stream that is a CacheReader."""

    header: bytes  # encoded, HEADER_BYTES long
    payload: memoryview  # whole blocks of one layer or more, back to back
    offset: int  # of the payload in the sender's staging memory (StagingPool.fd)
    device: DeviceBuffer | None = None  # the payload in device memory; then `header` and `payload` await a copy of it
    cached: CachedBlocks | None = None  # the payload in the cache; then `payload` is empty

    @property
    def size(self) -> int:
        """Bytes of the payload, wherever it is."""
        return self.payload.nbytes if self.cached is None else self.cached.size_bytes


class Outgoing(Protocol):
    """The sender's end of one stream, opened and authenticated."""

    async def write(self, message: bytes) -> None:
        """Send one frame without KV. Raises a KVTransferError when the peer is gone."""
        ...

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        """Send BLOCKS frames in order; waits while the peer takes nothing. Raises a KVTransferError."""
        ...

    async def read(self) -> bytes:
        """Wait for one frame without KV, whole. Raises a KVTransferError when the stream ended."""
        ...

    def close(self) -> None:
        """End the stream at once, whatever is being read or written; idempotent."""
        ...


@runtime_checkable
class CacheReader(Protocol):
    """What an Outgoing is besides, if its peer reads payloads out of this engine's cache."""

    def revoke(self) -> None:
        """Have nothing count that the peer has not landed by now; from any thread. The stream is then to be closed."""
        ...

    def close(self) -> None:
        """See Outgoing."""
        ...


class Incoming(Protocol):
    """The receiver's end of one stream. Frames are taken in turn: `header`, then exactly one of the two after it."""

    async def header(self) -> Header:
        """Wait for the next frame. Raises CorruptFrame, or TransferAborted when the stream ended or the sender died."""
        ...

    async def payload(self, header: Header) -> bytes:
        """Take the payload of a frame without KV; the caller has judged its size."""
        ...

    async def land(self, header: Header, rows: Sequence[memoryview]) -> int | None:
        """Write the payload of a BLOCKS frame to `rows`, whose sizes add up to it; returns when it is there.

        Returns the payload's digest where it was made on the way (kv_transfer.copying); None: the rows are to be read.
        """
        ...

    async def write(self, message: bytes) -> None:
        """Answer with one frame without KV. Raises a KVTransferError when the sender is gone."""
        ...

    def close(self) -> None:
        """End the stream at once; idempotent."""
        ...


@runtime_checkable
class DeviceIncoming(Incoming, Protocol):
    """The receiver's end of a stream whose payloads may come to the memory of its device."""

    @property
    def is_on_device(self) -> bool:
        """Whether the payload of the header that was last read comes so, with its sum behind it."""
        ...

    async def land_on_device(self, header: Header, scatter: Callable[[torch.Tensor], None]) -> None:
        """Take the payload with its sum and give it to `scatter`, in another thread; no call runs or comes later."""
        ...


Serve = Callable[[Incoming], Awaitable[None]]


class Transport(Protocol):
    """One way for bytes to travel; lives on the KV thread's event loop."""

    name: str  # as `kv.transport` names it

    async def listen(self, host: str, serve: Serve) -> str:
        """Take streams from now on, each served in a task of its own; return the address that peers connect to.

        Raises OSError when it cannot listen, ConfigError when this machine cannot do it at all.
        """
        ...

    async def connect(self, address: str, timeout_s: float) -> Outgoing:
        """Open a stream to a peer. Raises Unauthorized, TransferAborted or TransferTimeout."""
        ...

    async def close(self) -> None:
        """End every stream, stop listening and give back what is held; idempotent."""
        ...


class Ways(Protocol):
    """The ways to reach decode engines."""

    async def open(
        self, peer: str, *, attempt: int, failed: frozenset[str], timeout_s: float, num_bytes: int | None = None
    ) -> tuple[str, Outgoing]:
        """Open a stream for one attempt at a hand-over of `num_bytes`; return it with the name of its transport.

        `failed` names the transports whose streams broke in this hand-over. Raises a KVTransferError when none is left.
        """
        ...

    def done(self, peer: str, name: str, num_bytes: int, seconds: float) -> None:
        """Note that a hand-over landed; `seconds` without the time it waited for prefill to compute."""
        ...

    def failed(self, peer: str, name: str) -> None:
        """Note that a stream broke."""
        ...
