"""One hand-over's turn on a link, at either end.

Owns where a turn begins and ends among the frames, so that the link can serve the next one: a mark opens it, each end
says with another that it is done, and what either still sends until then is taken and dropped. Knows nothing of who
connects to whom.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from core.errors import CorruptFrame, TransferAborted
from kv_transfer.frames import HEADER_BYTES, Header, Kind, read_header
from kv_transfer.tcp_link import Link
from kv_transfer.transport import StagedFrame

# In the place of a frame's header; no kind of frame is 0.
OPEN: Final = b"\x00open".ljust(HEADER_BYTES, b"\x00")
END: Final = b"\x00end".ljust(HEADER_BYTES, b"\x00")
_SETTLE_TIMEOUT_S: Final = 5.0  # after that the link is closed instead
_DROP_BYTES: Final = 256 << 10


class TcpStream:
    """Implements both ends of kv_transfer.transport: Outgoing and Incoming."""

    def __init__(self, link: Link, ended: Callable[[TcpStream], None] | None = None) -> None:
        """Use a link on which the mark that opens a turn has passed; `ended` is called once, by `close`."""
        self._link = link
        self._ended = ended
        self._write_lock = asyncio.Lock()
        self._header = bytearray(HEADER_BYTES)
        self._num_header_bytes = 0  # of the next header, that have come
        self._owed_bytes = 0  # of the payload that follows the last header
        self._num_moving = 0  # frames that are half through
        self._is_cut = False  # one stayed so: what follows it cannot be told
        self._is_closed = False
        self._peer_has_ended = False

    @property
    def link(self) -> Link:
        """What it runs on."""
        return self._link

    async def write(self, message: bytes) -> None:
        """Send one frame without KV. Raises TransferAborted."""
        async with self._write_lock:
            with self._whole():
                await self._link.control.send(message)

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        """Send BLOCKS frames in order; waits while the peer takes nothing. Raises TransferAborted."""
        async with self._write_lock:
            with self._whole():
                await self._link.send_blocks([(frame.header, frame.payload) for frame in frames])

    async def read(self) -> bytes:
        """Wait for one frame without KV, whole. Raises CorruptFrame, TransferAborted."""
        header = await self.header()
        encoded = bytes(self._header)
        return encoded + await self.payload(header)

    async def header(self) -> Header:
        """Wait for the next frame. Raises CorruptFrame, TransferAborted."""
        self._check_open()
        return await self._next_header()

    async def payload(self, header: Header) -> bytes:
        """Take the payload of a frame without KV. Raises CorruptFrame, TransferAborted."""
        if header.kind is Kind.BLOCKS:
            raise CorruptFrame("a BLOCKS frame where an answer was expected")
        data = bytearray(header.size)
        await self._take([memoryview(data)])
        return bytes(data)

    async def land(self, header: Header, rows: Sequence[memoryview]) -> None:
        """Write the payload of a BLOCKS frame to `rows`. Raises TransferAborted."""
        await self._take(rows)

    def close(self) -> None:
        """End the stream at once, whatever is being read or written; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_cut or self._num_moving or self._num_header_bytes:
            self._link.close()
        else:
            self._link.interrupt()
        if self._ended is not None:
            self._ended(self)

    async def settle(self) -> bool:
        """Bring the link of a closed stream to where the next may open; False when it had to be closed instead."""
        assert self._is_closed
        try:
            async with asyncio.timeout(_SETTLE_TIMEOUT_S):
                await self._link.control.send(END)
                while not self._peer_has_ended:
                    await self._drop_payload()
                    with contextlib.suppress(_PeerEnded):
                        await self._next_header()
        except (TimeoutError, TransferAborted, CorruptFrame):
            self._link.close()
            return False
        except BaseException:
            self._link.close()
            raise
        return True

    async def _next_header(self) -> Header:
        if self._peer_has_ended:
            raise _PeerEnded("the peer ended the stream")
        assert not self._owed_bytes, "the payload before was not taken"
        view = memoryview(self._header)
        while self._num_header_bytes < HEADER_BYTES:
            self._num_header_bytes += await self._link.control.receive_some(view[self._num_header_bytes :])
        self._num_header_bytes = 0
        if self._header == END:
            self._peer_has_ended = True
            raise _PeerEnded("the peer ended the stream")
        try:
            header = read_header(view)
        except CorruptFrame:
            self._is_cut = True
            raise
        self._owed_bytes = header.size
        return header

    async def _take(self, rows: Sequence[memoryview]) -> None:
        assert sum(row.nbytes for row in rows) == self._owed_bytes, "rows and payload differ in size"
        with self._whole():
            await self._link.receive_payload(rows)
            self._owed_bytes = 0

    async def _drop_payload(self) -> None:
        """Take what is owed to nowhere: rows that all view one small buffer."""
        buffer = memoryview(bytearray(min(self._owed_bytes, _DROP_BYTES)))
        full, rest = divmod(self._owed_bytes, _DROP_BYTES)
        await self._link.receive_payload([buffer] * full + [buffer[:rest]])
        self._owed_bytes = 0

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Know of the frame inside when it is left half done."""
        self._check_open()
        self._num_moving += 1
        try:
            yield
        except BaseException:
            self._is_cut = True
            raise
        finally:
            self._num_moving -= 1

    def _check_open(self) -> None:
        if self._is_closed:
            raise TransferAborted("the stream is closed")
        if self._is_cut:
            raise TransferAborted("a frame of the stream was broken off")


class _PeerEnded(TransferAborted):
    """The peer has said that it sends no more."""
