"""A link that carries so many bytes a second, put below the transports of one endpoint; it counts what it carried."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kv_transfer.frames import HEADER_BYTES, Kind, read_header, read_offer
from kv_transfer.transport import Outgoing, Serve, StagedFrame, Transport


class SlowLink:
    """One frame at a time, in the order in which they come to it, once it `carries`."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._lock = asyncio.Lock()
        self.carries = asyncio.Event()
        self.carried_bytes = 0
        self.ended_at: dict[str, int] = {}  # bytes carried when a hand-over had sent its last frame, by transfer id

    def below(self, transport: Transport) -> Transport:
        """Have a transport's KV pass this link."""
        return _SlowTransport(transport, self)

    async def carry(self, num_bytes: int) -> None:
        """Take the time that so many bytes need."""
        async with self._lock:
            await self.carries.wait()
            await asyncio.sleep(num_bytes / self._bytes_per_s)
            self.carried_bytes += num_bytes


class _SlowTransport:
    def __init__(self, transport: Transport, link: SlowLink) -> None:
        self.name = transport.name
        self._transport = transport
        self._link = link

    async def listen(self, host: str, serve: Serve) -> str:
        return await self._transport.listen(host, serve)

    async def connect(self, address: str, timeout_s: float) -> Outgoing:
        return _SlowOutgoing(await self._transport.connect(address, timeout_s), self._link)

    async def close(self) -> None:
        await self._transport.close()


class _SlowOutgoing:
    def __init__(self, stream: Outgoing, link: SlowLink) -> None:
        self._stream = stream
        self._link = link
        self._transfer_id = ""
        self.read, self.close = stream.read, stream.close

    async def write(self, message: bytes) -> None:
        kind = read_header(message[:HEADER_BYTES]).kind
        if kind is Kind.OFFER:
            self._transfer_id = read_offer(message[HEADER_BYTES:]).transfer_id
        elif kind is Kind.END:
            self._link.ended_at[self._transfer_id] = self._link.carried_bytes
        await self._stream.write(message)

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        for frame in frames:
            await self._link.carry(frame.payload.nbytes)
            await self._stream.write_blocks([frame])
