"""An authenticated connection between two engines for what is not KV, beside a library that moves the KV itself.

Owns its sockets, the handshake and short tagged messages, and notices that the peer is gone even while nobody reads.
Knows nothing of frames or of what the messages mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

from core.errors import CorruptFrame, TransferAborted, TransferTimeout, Unauthorized, WorkerLost
from core.handshake import Handshake, Refused, RouterHandshake, WorkerHandshake

logger = logging.getLogger(__name__)
_PREFIX: Final = struct.Struct("<BI")  # tag, bytes that follow
MAX_MESSAGE_BYTES: Final = 1 << 20  # a message that claims more ends the link
_MAX_WAITING: Final = 64  # messages read ahead; then the peer is held back
_FLUSH_TIMEOUT_S: Final = 2.0  # for the peer to take what was sent before a link was closed
_HANDSHAKE_TIMEOUT_S: Final = 5.0  # for a stranger who connects and says nothing


class Link:
    """One connection whose other end has proven that it knows the cluster token."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._messages: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(_MAX_WAITING)
        self.lost = asyncio.Event()  # the peer is gone or the link was closed
        self._pump = asyncio.create_task(self._read(), name="kv-link")

    @property
    def local_host(self) -> str:
        """Our own address on the way to this peer."""
        return str(self._writer.get_extra_info("sockname")[0])

    @property
    def peer_host(self) -> str:
        """The peer's address."""
        return str(self._writer.get_extra_info("peername")[0])

    async def send(self, tag: int, data: bytes = b"") -> None:
        """Send one message; waits while the peer takes nothing. Raises TransferAborted when it is gone."""
        if self.lost.is_set():
            raise TransferAborted("the link to the peer is gone")
        self._writer.write(_PREFIX.pack(tag, len(data)) + data)
        try:
            await self._writer.drain()
        except OSError as exc:
            raise TransferAborted("the link to the peer broke") from exc

    def send_soon(self, tag: int, data: bytes = b"") -> None:
        """Send one short message without waiting for anything; one that cannot be sent is lost with the link."""
        if not self.lost.is_set():
            self._writer.write(_PREFIX.pack(tag, len(data)) + data)

    async def receive(self) -> tuple[int, bytes]:
        """Wait for one message. Raises TransferAborted when the link ended."""
        message = await self._messages.get()
        if message is None:
            self._messages.put_nowait(None)
            raise TransferAborted("the link to the peer ended")
        return message

    def close(self) -> None:
        """End the link at once, after what was sent if the peer takes it in time; idempotent."""
        self._pump.cancel()
        self.lost.set()  # also when the task never began
        self._end()

    async def _read(self) -> None:
        try:
            while True:
                tag, size = _PREFIX.unpack(await self._reader.readexactly(_PREFIX.size))
                if size > MAX_MESSAGE_BYTES:
                    raise CorruptFrame(f"a message on a KV link claims {size} bytes")
                await self._messages.put((tag, await self._reader.readexactly(size)))
        except (OSError, asyncio.IncompleteReadError):
            pass  # how a peer leaves, in order or not; whoever reads hears of it
        except CorruptFrame as exc:
            logger.warning("%s; the link is ended", exc)
        finally:
            self._end()

    def _end(self) -> None:
        self.lost.set()
        transport = self._writer.transport
        if not transport.is_closing() and transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(_FLUSH_TIMEOUT_S, transport.abort)
        self._writer.close()
        if self._messages.full():
            self._messages.get_nowait()  # the peer is gone: that its last message is too changes nothing
        self._messages.put_nowait(None)


async def dial(address: str, token: str, timeout_s: float) -> Link:
    """Connect to a listener. Raises Unauthorized, TransferAborted or TransferTimeout."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, int(port))
            return await _authenticate(reader, writer, RouterHandshake(token))
    except TimeoutError as exc:
        raise TransferTimeout(f"{address} did not answer within {timeout_s:g} s") from exc
    except (OSError, asyncio.IncompleteReadError, WorkerLost) as exc:
        raise TransferAborted(f"no KV link to {address}: {exc}") from exc


class Listener:
    """Takes links from peers and serves each in a task of its own."""

    def __init__(self, token: str, serve: Callable[[Link], Awaitable[None]]) -> None:
        self._token = token
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # all and only connections that are served

    async def start(self, host: str) -> str:
        """Listen on a free port; return the address. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, host, 0, family=socket.AF_INET)
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """End every link and stop listening; idempotent."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._run(reader, writer), name="kv-link-served")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # also when it was cancelled before it began

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
                link = await _authenticate(reader, writer, WorkerHandshake(self._token))
        except (Unauthorized, WorkerLost, TimeoutError, OSError, asyncio.IncompleteReadError) as exc:
            logger.warning("a KV link from a stranger was refused: %s", exc or "it said nothing")
            return
        try:
            await self._serve(link)
        finally:
            link.close()


async def _authenticate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shake: Handshake) -> Link:
    try:
        writer.write(shake.opening())
        while shake.needed:
            try:
                writer.write(shake.take(await reader.readexactly(shake.needed)))
            except Refused as exc:
                writer.write(exc.reply)
                with contextlib.suppress(OSError):
                    await writer.drain()
                raise
    except BaseException:
        writer.close()
        raise
    return Link(reader, writer)
