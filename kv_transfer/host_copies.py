"""Lets a transport that knows host memory only carry frames that were staged in the memory of a device.

Owns the copy from device to host, made when such a frame is about to leave, into the staging memory taken for it. Must
not know which transport it serves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from kv_transfer.frames import seal_header
from kv_transfer.transport import Outgoing, Serve, StagedFrame, Transport


class HostCopies:
    """A transport before whose frames are copied to the host; implements kv_transfer.transport.Transport."""

    def __init__(self, transport: Transport) -> None:
        self.name = transport.name
        self._transport = transport

    async def listen(self, host: str, serve: Serve) -> str:
        return await self._transport.listen(host, serve)

    async def connect(self, address: str, timeout_s: float) -> Outgoing:
        return _Outgoing(await self._transport.connect(address, timeout_s))

    async def close(self) -> None:
        await self._transport.close()


class _Outgoing:
    """See kv_transfer.transport.Outgoing."""

    def __init__(self, stream: Outgoing) -> None:
        self._stream = stream
        self.write, self.read, self.close = stream.write, stream.read, stream.close

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        await self._stream.write_blocks([await _on_host(frame) for frame in frames])


async def _on_host(frame: StagedFrame) -> StagedFrame:
    buffer = frame.device
    if buffer is None:
        return frame
    copying = asyncio.ensure_future(asyncio.to_thread(buffer.copy_to_host, frame.payload))
    try:
        await asyncio.shield(copying)
    except asyncio.CancelledError:
        await asyncio.wait((copying,))  # the memory is another frame's when we are gone
        raise
    return replace(frame, header=seal_header(frame.header, buffer.place, frame.payload), device=None)
