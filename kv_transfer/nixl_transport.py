"""KV by NIXL: the receiver reads it out of the sender's registered staging memory into its own rows.

Frames travel on a control link, BLOCKS as a header and an address. A sender is held back by credit: what it has told
of and the receiver has not read is bounded. NIXL's own connections authenticate nobody: the link does, and only over it
does a peer learn the keys of a memory. Must not know what a hand-over is.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import struct
from collections.abc import Sequence
from typing import Final

from core.errors import ConfigError, CorruptFrame, TransferAborted, TransferTimeout
from kv_transfer.control_link import Link, Listener, dial
from kv_transfer.frames import HEADER_BYTES, Header, Kind, read_header
from kv_transfer.nixl_agent import NixlAgent, address_of
from kv_transfer.staging import StagingPool
from kv_transfer.transport import Outgoing, Serve, StagedFrame

logger = logging.getLogger(__name__)
CREDIT_BYTES: Final = 8 << 20  # that a receiver may have to read; more wait in staging memory untold
_PLACE: Final = struct.Struct("<Q")  # address of a payload in the sender's process, or a number of bytes


class _Tag(enum.IntEnum):
    HELLO = 1  # sender -> receiver, once: what NIXL needs to reach its memory
    READY = 2  # receiver -> sender: it does
    FRAME = 3
    PLACE = 4  # sender -> receiver: where the payload of the BLOCKS header before it is
    READ = 5  # receiver -> sender: so many bytes were read


class _Outgoing:
    """The sender's end of a stream; see kv_transfer.transport.Outgoing."""

    def __init__(self, link: Link, agent: NixlAgent, staging_address: int) -> None:
        self._link = link
        self._agent = agent
        self._staging_address = staging_address
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue()  # the receiver's; None: the link has ended
        self._unread_bytes = 0  # the receiver was told of them
        self._was_read = asyncio.Event()  # or the link has ended
        self._pump = asyncio.create_task(self._take(), name="kv-nixl-credit")

    async def write(self, message: bytes) -> None:
        await self._link.send(_Tag.FRAME, message)

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        """Tell where the frames are; waits while the peer has CREDIT_BYTES of them to read."""
        for frame in frames:
            while self._unread_bytes >= CREDIT_BYTES and not self._link.lost.is_set():
                self._was_read.clear()
                await self._was_read.wait()
            self._unread_bytes += frame.payload.nbytes
            self._agent.drive(self)
            await self._link.send(_Tag.FRAME, frame.header)
            await self._link.send(_Tag.PLACE, _PLACE.pack(self._staging_address + frame.offset))

    async def read(self) -> bytes:
        frame = await self._frames.get()
        if frame is None:
            self._frames.put_nowait(None)
            raise TransferAborted("the stream has ended")
        return frame

    def close(self) -> None:
        self._agent.rest(self)
        self._link.close()
        self._pump.cancel()
        self._end()

    async def _take(self) -> None:
        """Take credit, and frames for whoever reads them."""
        try:
            while True:
                tag, data = await self._link.receive()
                if tag == _Tag.FRAME:
                    await self._frames.put(data)
                elif tag == _Tag.READ and len(data) == _PLACE.size:
                    self._unread_bytes = max(0, self._unread_bytes - _PLACE.unpack(data)[0])
                    self._was_read.set()
                    if not self._unread_bytes:
                        self._agent.rest(self)
                else:
                    raise TransferAborted("the peer does not speak as kv.transport nixl does")
        except TransferAborted:
            self._link.close()
        finally:
            self._end()

    def _end(self) -> None:
        self._agent.rest(self)
        self._frames.put_nowait(None)
        self._was_read.set()


class _Incoming:
    """The receiver's end of a stream; see kv_transfer.transport.Incoming."""

    def __init__(self, link: Link, agent: NixlAgent, peer: str) -> None:
        self._link = link
        self._agent = agent
        self._peer = peer
        self._rest = b""

    async def header(self) -> Header:
        data = await self._receive(_Tag.FRAME)
        if len(data) < HEADER_BYTES:
            raise CorruptFrame("a frame header is cut")
        header = read_header(data[:HEADER_BYTES])
        self._rest = data[HEADER_BYTES:]
        if len(self._rest) != (0 if header.kind is Kind.BLOCKS else header.size):
            raise CorruptFrame(f"a {header.kind.name} frame is cut")
        return header

    async def payload(self, header: Header) -> bytes:
        return self._rest

    async def land(self, header: Header, rows: Sequence[memoryview]) -> None:
        place = await self._receive(_Tag.PLACE)
        if len(place) != _PLACE.size:
            raise CorruptFrame("a place of a payload is cut")
        await self._agent.read(self._link, self._peer, _PLACE.unpack(place)[0], [row for row in rows if row.nbytes])
        await self._link.send(_Tag.READ, _PLACE.pack(header.size))

    async def write(self, message: bytes) -> None:
        await self._link.send(_Tag.FRAME, message)

    def close(self) -> None:
        self._link.close()

    async def _receive(self, wanted: int) -> bytes:
        tag, data = await self._link.receive()
        if tag != wanted:
            raise CorruptFrame("the peer does not speak as kv.transport nixl does")
        return data


class NixlTransport:
    """Streams whose KV NIXL moves; implements kv_transfer.transport.Transport."""

    name = "nixl"

    def __init__(self, token: str, staging: StagingPool, rows: Sequence[memoryview] = ()) -> None:
        """`staging` is the memory that this end sends from, `rows` that in which things land; other rows are copied."""
        self._token = token
        self._rows = list(rows)
        self._staging = staging
        self._agent: NixlAgent | None = None
        self._knows_staging = False  # from the first stream to a peer on: who only receives allocates none
        self._staging_lock = asyncio.Lock()
        self._listener: Listener | None = None
        self._outgoing: set[Link] = set()  # all and only links we opened that may be alive
        self._is_closed = False

    async def listen(self, host: str, serve: Serve) -> str:
        """See kv_transfer.transport.Transport."""
        agent = self._start()

        async def serve_link(link: Link) -> None:
            tag, metadata = await link.receive()
            if tag != _Tag.HELLO:
                raise TransferAborted("the peer does not speak as kv.transport nixl does")
            peer = agent.meet(metadata)
            try:
                await link.send(_Tag.READY)
                await serve(_Incoming(link, agent, peer))
            finally:
                agent.part(peer)

        async def serve_and_log(link: Link) -> None:
            try:
                await serve_link(link)
            except TransferAborted as exc:
                logger.warning("a stream from %s was not served: %s", link.peer_host, exc)

        self._listener = Listener(self._token, serve_and_log)
        return await self._listener.start(host)

    async def connect(self, address: str, timeout_s: float) -> Outgoing:
        """Open a stream; the peer has learned to read our staging memory."""
        if self._is_closed:
            raise TransferAborted("the transport is closed")
        agent = await self._started_to_send()
        link = await dial(address, self._token, timeout_s)
        self._outgoing = {each for each in self._outgoing if not each.lost.is_set()} | {link}
        try:
            async with asyncio.timeout(timeout_s):
                await link.send(_Tag.HELLO, agent.metadata)
                tag, _ = await link.receive()
            if tag != _Tag.READY:
                raise TransferAborted(f"{address} does not speak as kv.transport nixl does")
        except TimeoutError as exc:
            link.close()
            raise TransferTimeout(f"{address} did not answer within {timeout_s:g} s") from exc
        except BaseException:
            link.close()
            raise
        return _Outgoing(link, agent, address_of(self._staging.region))

    async def close(self) -> None:
        """See kv_transfer.transport.Transport."""
        self._is_closed = True
        for link in self._outgoing:
            link.close()
        self._outgoing.clear()
        if self._listener is not None:
            await self._listener.close()
            self._listener = None
        if self._agent is not None:
            self._agent.close()
            self._agent = None
        self._rows.clear()

    def _start(self) -> NixlAgent:
        if self._agent is None:
            self._agent = NixlAgent(self._rows)
        return self._agent

    async def _started_to_send(self) -> NixlAgent:
        """Have NIXL know the staging memory, which must be allocated for that. Raises TransferAborted."""
        try:
            agent = self._start()
        except ConfigError as exc:
            raise TransferAborted(str(exc)) from exc
        async with self._staging_lock:
            if self._knows_staging:
                return agent
            is_allocated = await asyncio.to_thread(self._staging.allocate_all)
            if self._is_closed:
                raise TransferAborted("the transport is closed")
            if not is_allocated:
                raise TransferAborted("no memory for all of kv.staging_mb, which NIXL must know of beforehand")
            agent.register(self._staging.region)
            self._knows_staging = True
        return agent
