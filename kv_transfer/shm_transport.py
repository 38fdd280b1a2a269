"""KV between engines of one host: the receiver copies it out of the sender's cache or staging memory, once.

Owns who has which connection and whose memory is mapped. Connections and mappings outlive streams: a hand-over costs no
connect, no handshake and no page fault. What travels over the socket is frames without their KV.

A payload is read when it is landed, which may be after its stream has ended and its memory was given to another
hand-over. What was copied then is never served: the sender clears the stream's word in shared memory before its
segments or blocks can be given back, and `land` looks at it after the copy; and whatever else may write there, the
caller checks the checksum of what lies there, or has landed, after the copy, seeded by transfer, layer and position.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Final

from core.errors import BatonError, TransferAborted, TransferTimeout
from kv_transfer.copying import land_rows
from kv_transfer.frames import Header
from kv_transfer.shared_cache import OFFSET, SharedCache
from kv_transfer.shm_connection import (
    Connection,
    Record,
    Stream,
    offer_memory,
    place,
    read_place,
    receive_memory,
)
from kv_transfer.shm_memory import CACHE, STAGING, Board, Identity, Mark, PeerMemory, identity_of
from kv_transfer.staging import StagingPool
from kv_transfer.transport import Incoming, Outgoing, Serve, StagedFrame

logger = logging.getLogger(__name__)
SCHEME: Final = "unix:"
MAX_IDLE: Final = 8  # connections kept to one peer
MAX_HANDSHAKES: Final = 64  # at once; who comes then is turned away
HANDSHAKE_S: Final = 5.0
YIELD_BYTES: Final = 4 << 20  # landed without letting the loop do anything else: 0.3 ms at 16 GB/s


class ShmOutgoing:
    """The sender's end; implements kv_transfer.transport.Outgoing and CacheReader."""

    def __init__(self, stream: Stream, board: Board, mark: Mark) -> None:
        self._stream = stream
        self._board = board
        self._mark = mark
        self._is_closed = False

    async def write(self, message: bytes) -> None:
        """Send one frame without KV."""
        await self._stream.send((message,))

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        """Say where payloads lie."""
        await self._stream.send([frame.header + _place_of(frame) for frame in frames])

    async def read(self) -> bytes:
        """Wait for one frame without KV, whole."""
        record = await self._stream.next_record()
        return record.head + record.body

    def revoke(self) -> None:
        """Have nothing count that the peer copies from here on; from any thread."""
        self._board.revoke(self._mark)

    def close(self) -> None:
        """End the stream at once; nothing the peer copies from here on counts."""
        if self._is_closed:
            return
        self._is_closed = True
        self._board.end(self._mark)
        self._stream.close()


class ShmIncoming:
    """The receiver's end; implements kv_transfer.transport.Incoming."""

    def __init__(self, stream: Stream, memory: PeerMemory, mark: Mark) -> None:
        self._stream = stream
        self._memory = memory
        self._mark = mark
        self._record: Record | None = None
        self._landed_bytes = 0  # since the loop was last let go

    async def header(self) -> Header:
        """Wait for the next frame."""
        self._record = await self._stream.next_record()
        return self._record.header

    async def payload(self, header: Header) -> bytes:
        """Take the payload of a frame without KV."""
        return self._take().body

    async def land(self, header: Header, rows: Sequence[memoryview]) -> int:
        """Copy from the sender's memory. Raises CorruptFrame when it lies outside, TransferAborted when it is late."""
        memory, offsets, size = read_place(self._take().body, header.size)
        digest = land_rows(rows, self._memory.read(memory, offsets, size))
        if not self._memory.is_live(self._mark):
            raise TransferAborted("the sender ended the stream while its KV was copied")
        self._landed_bytes += header.size
        if self._landed_bytes >= YIELD_BYTES:
            self._landed_bytes = 0
            await asyncio.sleep(0)
        return digest

    async def write(self, message: bytes) -> None:
        """Answer with one frame without KV."""
        await self._stream.send((message,))

    def close(self) -> None:
        """End the stream at once; idempotent."""
        self._record = None
        self._stream.close()

    def _take(self) -> Record:
        record, self._record = self._record, None
        if record is None:
            raise TransferAborted("the stream was closed at this end")
        return record


class ShmTransport:
    """Connections to and from the engines of this host; implements kv_transfer.transport.Transport."""

    name = "shm"

    def __init__(self, token: str, staging: StagingPool, run_dir: Path, cache: SharedCache | None = None) -> None:
        """Take the cluster token, the memory that peers may read, and a folder for the socket."""
        self._token = token
        self._staging = staging
        self._cache = cache
        self._run_dir = run_dir
        self._board: Board | None = None  # made for the first stream out
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self._serve: Serve | None = None
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()  # accepting, handshakes, and streams being served
        self._num_handshakes = 0
        self._connections: set[Connection] = set()  # all and only those not lost
        self._idle: dict[str, list[Connection]] = {}  # by address: those that wait for a stream, never lost
        self._memories: dict[Identity, tuple[PeerMemory, set[Connection]]] = {}  # all mapped, and for whom

    async def listen(self, host: str, serve: Serve) -> str:
        """Take streams from engines of this host; `host` does not matter. Raises OSError."""
        self._serve = serve
        path = self._run_dir / f"kv-{os.getpid()}-{secrets.token_hex(4)}.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        try:
            with short_path(path) as short:
                listener.bind(short)
                os.chmod(short, 0o600)  # before `listen`: nobody could connect yet
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        self._listener, self._path = listener, path
        self._spawn(self._accept(listener), "kv-shm-accept")
        return f"{SCHEME}{path}"

    async def connect(self, address: str, timeout_s: float) -> Outgoing:
        """Open a stream, over a connection that is there where one is."""
        if self._is_closed:
            raise TransferAborted("this transport is closed")
        if self._board is None:
            self._board = Board()
        connection = self._idle_connection(address) or await self._new_connection(address, self._board, timeout_s)
        try:
            mark = self._board.begin()
        except TransferAborted:
            connection.abort()
            raise
        return ShmOutgoing(connection.start(mark), self._board, mark)

    async def close(self) -> None:
        """End every stream and connection, stop listening, unmap; idempotent."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)  # the loop closes the sockets
        if self._listener is not None and self._path is not None:
            self._listener.close()
            self._listener = None
            self._path.unlink(missing_ok=True)
        if self._board is not None:
            self._board.close()

    def _idle_connection(self, address: str) -> Connection | None:
        idle = self._idle.get(address)
        while idle:
            connection = idle.pop()
            if connection.has_peer():
                return connection
            connection.abort()
        return None

    async def _new_connection(self, address: str, board: Board, timeout_s: float) -> Connection:
        """Connect, prove the token, pass this engine's memory."""
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout_s):
                with short_path(Path(address.removeprefix(SCHEME))) as short:
                    await loop.sock_connect(sock, short)
                fds = [self._staging.fd, board.fd, *(() if self._cache is None else (self._cache.fd,))]
                await offer_memory(sock, self._token, fds)
                return await self._adopt(sock, Connection(None, lambda it: self._keep(address, it), self._forget))
        except TimeoutError as exc:
            sock.close()
            raise TransferTimeout(f"{address} did not answer in {timeout_s} s") from exc
        except (OSError, ValueError) as exc:
            sock.close()
            raise TransferAborted(f"cannot connect to {address}: {exc}") from exc
        except BaseException:
            sock.close()
            raise

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as exc:  # no descriptor left, or the peer left first
                logger.warning("no KV connection was taken: %s", exc)
                await asyncio.sleep(0.1)
                continue
            if self._num_handshakes >= MAX_HANDSHAKES:
                sock.close()
            else:
                self._num_handshakes += 1
                self._spawn(self._admit(sock), "kv-shm-handshake")

    async def _admit(self, sock: socket.socket) -> None:
        """Let a peer in, or log why not."""
        connection = Connection(self._start, lambda it: None, self._forget)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await receive_memory(sock, self._token, lambda fds: self._map(fds, connection))
                await self._adopt(sock, connection)
        except (BatonError, OSError) as exc:  # TimeoutError is an OSError
            logger.warning("a KV connection was refused: %s", exc or type(exc).__name__)
            self._unmap(connection)
            sock.close()
        except BaseException:
            self._unmap(connection)
            sock.close()
            raise
        finally:
            self._num_handshakes -= 1

    async def _adopt(self, sock: socket.socket, connection: Connection) -> Connection:
        """Hand a socket whose handshake is done to the event loop."""
        await asyncio.get_running_loop().create_unix_connection(lambda: connection, sock=sock)
        if self._is_closed or connection.is_lost:
            connection.abort()
            raise TransferAborted("the connection ended as soon as it was made")
        self._connections.add(connection)
        return connection

    def _start(self, connection: Connection, stream: Stream, mark: Mark) -> None:
        """Serve a stream in a task of its own."""
        if self._is_closed:  # it was on its way when this end closed
            connection.abort()
            return
        assert self._serve is not None
        memory = next(memory for memory, users in self._memories.values() if connection in users)
        incoming = ShmIncoming(stream, memory, mark)
        self._spawn(self._run(self._serve, incoming), f"kv-shm-stream-{mark.number}")

    async def _run(self, serve: Serve, incoming: Incoming) -> None:
        try:
            await serve(incoming)
        except Exception:
            logger.exception("serving a KV stream failed")
        finally:
            incoming.close()

    def _keep(self, address: str, connection: Connection) -> None:
        """Keep a connection whose stream has ended for the next one."""
        idle = self._idle.setdefault(address, [])
        if len(idle) >= MAX_IDLE:
            connection.abort()
        else:
            idle.append(connection)

    def _forget(self, connection: Connection) -> None:
        """Drop a lost connection, and the mapping that nobody else uses."""
        self._connections.discard(connection)
        for address, idle in list(self._idle.items()):
            if connection in idle:
                idle.remove(connection)
            if not idle:
                del self._idle[address]
        self._unmap(connection)

    def _map(self, fds: Sequence[int], connection: Connection) -> None:
        identity = identity_of(fds)
        entry = self._memories.get(identity)
        if entry is None:
            entry = self._memories[identity] = PeerMemory(*fds), set()
        entry[1].add(connection)

    def _unmap(self, connection: Connection) -> None:
        for identity, (memory, users) in list(self._memories.items()):
            users.discard(connection)
            if not users:
                del self._memories[identity]
                memory.close()

    def _spawn(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _place_of(frame: StagedFrame) -> bytes:
    """Say where a payload lies."""
    if frame.cached is not None:
        return place(CACHE, frame.cached.offsets())
    return place(STAGING, OFFSET.pack(frame.offset))


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Name a path by its open folder: an address in a UNIX socket has 107 bytes, a run folder may have more."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
