"""Hand-overs over plain TCP.

Owns who connects to whom: the listening socket, the proof that both ends know the cluster token, and the links to
peers, kept open between hand-overs so that none pays for a connect. Knows nothing of frames.

A stranger can make the listener keep one of a few sockets for five seconds and read a hundred bytes, no more. Bytes are
authenticated by their checksums only, not encrypted: for a network that others read, use gRPC with TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import struct
from dataclasses import dataclass, field
from typing import Final

from core.errors import KVTransferError, TransferAborted, TransferTimeout, Unauthorized, WorkerLost
from core.handshake import Handshake, Refused, RouterHandshake, WorkerHandshake
from kv_transfer.frames import HEADER_BYTES
from kv_transfer.tcp_link import Connection, Link
from kv_transfer.tcp_stream import OPEN, TcpStream
from kv_transfer.transport import Outgoing, Serve

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S: Final = 5.0
MAX_STRANGERS: Final = 64  # accepted connections that have not proved anything yet
_MAX_CONNECTIONS: Final = 8  # of one link
_MAX_IDLE_LINKS: Final = 4  # kept per peer
_IDLE_S: Final = 30.0  # after that the connecting end closes a link; the other waits twice as long
_SETTLE_WAIT_S: Final = 0.02  # a link that is about to be free beats a new one
_ACCEPT_PAUSE_S: Final = 1.0  # when descriptors ran out
_BACKLOG: Final = 128
_JOIN = struct.Struct("<16sBB")  # what follows the handshake: id of the link, which connection, of how many


@dataclass(slots=True)
class _Peer:
    """What is known of one address that was connected to."""

    idle: list[tuple[Link, asyncio.TimerHandle]] = field(default_factory=list)  # all and only links without a stream
    settling: set[asyncio.Task[None]] = field(default_factory=set)  # one for each link whose stream has just ended


class TcpTransport:
    """Implements kv_transfer.transport.Transport."""

    name = "tcp"

    def __init__(self, token: str, *, connections: int = 2) -> None:
        """Spread large payloads over `connections` to a peer, at most 8."""
        assert 1 <= connections <= _MAX_CONNECTIONS
        self._token = token
        self._num_connections = connections
        self._peers: dict[str, _Peer] = {}
        self._streams: set[TcpStream] = set()  # all and only outgoing ones that are open
        self._listeners: list[_Listener] = []
        self._is_closed = False

    async def listen(self, host: str, serve: Serve) -> str:
        """Take streams on a free port from now on. Raises OSError."""
        family, address = (await _resolve(host, 0))[0]
        sock = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        self._listeners.append(_Listener(sock, self._token, serve))
        port = sock.getsockname()[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def connect(self, address: str, timeout_s: float) -> Outgoing:
        """Open a stream on a link to a peer, a new one if none is free.

        Raises Unauthorized, TransferAborted or TransferTimeout.
        """
        if self._is_closed:
            raise TransferAborted("the transport is closed")
        peer = self._peers.setdefault(address, _Peer())
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._free_link(peer) or await self._dial(address)
                try:
                    await link.control.send(OPEN)
                except BaseException:
                    link.close()
                    raise
        except TimeoutError as exc:
            raise TransferTimeout(f"KV peer {address} did not answer within {timeout_s} s") from exc
        if self._is_closed:
            link.close()
            raise TransferAborted("the transport is closed")
        stream = TcpStream(link, lambda ended: self._stream_ended(peer, ended))
        self._streams.add(stream)
        return stream

    async def close(self) -> None:
        """End every stream, stop listening and close all links; idempotent."""
        self._is_closed = True
        for stream in list(self._streams):
            stream.close()
        tasks = [task for peer in self._peers.values() for task in peer.settling]
        await _end(tasks)
        for listener in self._listeners:
            await listener.close()
        for peer in self._peers.values():
            for link, timer in peer.idle:
                timer.cancel()
                link.close()
        self._listeners.clear()
        self._peers.clear()

    async def _free_link(self, peer: _Peer) -> Link | None:
        if not peer.idle and peer.settling:
            await asyncio.wait(peer.settling, timeout=_SETTLE_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        while peer.idle:
            link, timer = peer.idle.pop()
            timer.cancel()
            if link.is_silent:
                return link
            link.close()
        return None

    async def _dial(self, address: str) -> Link:
        """Make a link to a peer and prove the token on each of its connections."""
        host, _, port = address.rpartition(":")
        link_id = secrets.token_bytes(16)
        connections: list[Connection] = []
        try:
            for index in range(self._num_connections):
                connection = Connection(await _connected(host.strip("[]"), int(port)))
                connections.append(connection)
                await _shake_hands(connection, RouterHandshake(self._token))
                await connection.send(_JOIN.pack(link_id, index, self._num_connections))
        except BaseException as exc:
            for connection in connections:
                connection.close()
            if isinstance(exc, OSError | ValueError | WorkerLost):
                raise TransferAborted(f"cannot connect to KV peer {address}: {exc}") from exc
            raise
        return Link(connections)

    def _stream_ended(self, peer: _Peer, stream: TcpStream) -> None:
        self._streams.discard(stream)
        task = asyncio.get_running_loop().create_task(self._keep(peer, stream), name="kv-tcp-settle")
        peer.settling.add(task)

        def done(task: asyncio.Task[None]) -> None:
            peer.settling.discard(task)
            if task.cancelled():  # maybe before it ran at all
                stream.link.close()

        task.add_done_callback(done)

    async def _keep(self, peer: _Peer, stream: TcpStream) -> None:
        """Make a link free for the next stream once this one has come to its end."""
        if not await stream.settle():
            return
        if self._is_closed or len(peer.idle) >= _MAX_IDLE_LINKS:
            stream.link.close()
            return

        def drop() -> None:
            peer.idle.remove(entry)
            stream.link.close()

        entry = (stream.link, asyncio.get_running_loop().call_later(_IDLE_S, drop))
        peer.idle.append(entry)


class _Listener:
    """A listening socket and what came of it."""

    def __init__(self, sock: socket.socket, token: str, serve: Serve) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._token = token
        self._serve = serve
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()  # one for each connection that is judged, or for its link
        self._num_strangers = 0
        self._joining: dict[bytes, dict[int, Connection]] = {}  # all and only links of which connections are missing
        self._timers: dict[bytes, asyncio.TimerHandle] = {}  # when each of those is given up
        self._pause: asyncio.TimerHandle | None = None
        self._accept_from_now_on()

    async def close(self) -> None:
        """Stop listening and end every stream; idempotent."""
        self._loop.remove_reader(self._sock)
        if self._pause is not None:
            self._pause.cancel()
        self._sock.close()
        await _end(list(self._tasks))
        for link_id in list(self._joining):
            self._give_up(link_id)

    def _accept_from_now_on(self) -> None:
        self._loop.add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as exc:
            logger.warning("cannot take KV connections for %g s: %s", _ACCEPT_PAUSE_S, exc)
            self._loop.remove_reader(self._sock)
            self._pause = self._loop.call_later(_ACCEPT_PAUSE_S, self._accept_from_now_on)
            return
        if self._num_strangers >= MAX_STRANGERS:
            sock.close()
            return
        connection = Connection(sock)
        self._num_strangers += 1
        task = self._loop.create_task(self._admit(connection), name="kv-tcp-serve")
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():  # maybe before it ran at all
                connection.close()

        task.add_done_callback(done)

    async def _admit(self, connection: Connection) -> None:
        """Judge a connection; serve its link if that is whole by it."""
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await _shake_hands(connection, WorkerHandshake(self._token))
                link_id, index, count = _JOIN.unpack(await connection.receive(_JOIN.size))
        except (TimeoutError, TransferAborted, Unauthorized) as exc:
            logger.debug("a KV connection was dropped: %s", exc)
            connection.close()
            return
        except BaseException:
            connection.close()
            raise
        finally:
            self._num_strangers -= 1
        link = self._join(connection, link_id, index, count)
        if link is not None:
            await self._serve_link(link)

    def _join(self, connection: Connection, link_id: bytes, index: int, count: int) -> Link | None:
        """Add a connection to its link; return the link once it is whole."""
        joining = self._joining.setdefault(link_id, {})
        if link_id not in self._timers:
            self._timers[link_id] = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._give_up, link_id)
        if index in joining or not index < count <= _MAX_CONNECTIONS:
            connection.close()
            return None
        joining[index] = connection
        if len(joining) < count:
            return None
        self._timers.pop(link_id).cancel()
        del self._joining[link_id]
        return Link([joining[i] for i in sorted(joining)])

    def _give_up(self, link_id: bytes) -> None:
        self._timers.pop(link_id).cancel()
        for connection in self._joining.pop(link_id).values():
            connection.close()

    async def _serve_link(self, link: Link) -> None:
        """Serve one stream after another, until the peer leaves or breaks one off."""
        with contextlib.closing(link):
            while await self._is_opened(link):
                stream = TcpStream(link)
                try:
                    await self._serve(stream)
                except KVTransferError as exc:
                    logger.debug("a KV stream ended early: %s", exc)
                except Exception:
                    logger.exception("serving a KV stream failed")
                finally:
                    stream.close()
                if not await stream.settle():
                    return

    async def _is_opened(self, link: Link) -> bool:
        try:
            async with asyncio.timeout(2 * _IDLE_S):
                return await link.control.receive(HEADER_BYTES) == OPEN
        except (TimeoutError, TransferAborted):
            return False


async def _shake_hands(connection: Connection, handshake: Handshake) -> None:
    """Prove the token and see it proved. Raises Unauthorized, WorkerLost, TransferAborted."""
    await connection.send(handshake.opening())
    while handshake.needed:
        try:
            answer = handshake.take(bytes(await connection.receive(handshake.needed)))
        except Refused as exc:
            with contextlib.suppress(TransferAborted):
                await connection.send(exc.reply)
            raise
        await connection.send(answer)


async def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """Look a host up. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, (str(address[0]), int(address[1]))) for family, _, _, _, address in found]


async def _connected(host: str, port: int) -> socket.socket:
    """Connect to the first address of a host that answers. Raises OSError."""
    failure = OSError(f"{host} has no address")
    for family, address in await _resolve(host, port):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except OSError as exc:
            sock.close()
            failure = exc
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for them."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
