"""Sockets to one peer that hand-over streams take turns on, and the moving of bytes through them.

Owns non-blocking sockets, their options and how a payload is spread over the connections of a link. Knows nothing of
streams, tokens or what a frame means.

Bytes are moved on the event loop's own thread, as many per system call as there are or fit; the call itself runs
without the GIL. The loop is asked to wait only where nothing can be moved: for 8 MiB, some eight times. Neither larger
socket buffers nor SO_RCVLOWAT lessened the CPU time per byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import Final

from core.errors import TransferAborted

STRIPE_BYTES: Final = 1 << 20  # a payload from this size on is spread over all connections of its link
_MAX_VIEWS: Final = 256  # per system call; Linux takes 1024
_TURN_BYTES: Final = 8 << 20  # moved without a wait before other tasks of the loop have their turn
_RECEIVE, _SEND = False, True
# A peer that froze or lost its network is noticed about as soon as by gRPC's pings (2 s and 2 s).
_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 4000),  # ms; ends a peer that reads nothing for so long, too
)

Buffer = bytes | bytearray | memoryview


class Connection:
    """One connected socket, on the running loop."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a socket."""
        sock.setblocking(False)
        for level, option, value in _OPTIONS:
            sock.setsockopt(level, option, value)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._watchers: dict[bool, asyncio.Future[None]] = {}  # all and only directions that are waited for

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._sock.fileno() < 0

    @property
    def is_silent(self) -> bool:
        """Whether it is open at both ends and nothing waits to be read."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def send(self, *views: Buffer) -> None:
        """Send all bytes. Raises TransferAborted."""
        await move([Move(self, _SEND, views)])

    async def receive(self, size: int) -> bytearray:
        """Wait for exactly `size` bytes. Raises TransferAborted."""
        data = bytearray(size)
        await move([Move(self, _RECEIVE, [data])])
        return data

    async def receive_some(self, view: memoryview) -> int:
        """Wait for bytes and take what is there; a cancelled call has taken none. Raises TransferAborted."""
        part = Move(self, _RECEIVE, [view])
        while not (count := part.advance()):
            await _ready([part])
        return count

    def send_some(self, views: Sequence[memoryview]) -> int:
        """Send what fits, at once. Raises OSError."""
        return self._sock.sendmsg(views)

    def take_some(self, views: Sequence[memoryview]) -> int:
        """Take what is there, at once; 0 at the end. Raises OSError."""
        return self._sock.recv_into(views[0]) if len(views) == 1 else self._sock.recvmsg_into(views)[0]

    def watch(self, direction: bool, future: asyncio.Future[None]) -> None:
        """Let `future` end when bytes can be moved, the peer is gone or `interrupt` is called."""
        if self.is_closed:
            raise TransferAborted("the connection to the peer is closed")
        assert direction not in self._watchers, "two tasks move bytes in one direction"
        if direction is _SEND:
            self._loop.add_writer(self._sock, _wake, future)
        else:
            self._loop.add_reader(self._sock, _wake, future)
        self._watchers[direction] = future

    def unwatch(self, direction: bool, future: asyncio.Future[None]) -> None:
        """Take back `watch`."""
        if self._watchers.get(direction) is not future:
            return
        del self._watchers[direction]
        if direction is _SEND:
            self._loop.remove_writer(self._sock)
        else:
            self._loop.remove_reader(self._sock)

    def interrupt(self) -> None:
        """Wake whoever waits with TransferAborted."""
        for direction, future in list(self._watchers.items()):
            self.unwatch(direction, future)
            if not future.done():
                future.set_exception(TransferAborted("the stream was closed"))

    def close(self) -> None:
        """Close at once and wake whoever waits; idempotent."""
        if not self.is_closed:
            self.interrupt()
            self._sock.close()


class Move:
    """Bytes that are to go through one connection in one direction."""

    def __init__(self, connection: Connection, direction: bool, views: Sequence[Buffer]) -> None:
        self.connection = connection
        self.direction = direction
        self._views = [memoryview(view).cast("B") for view in views if len(view)]
        self._first = 0  # of the views that are not through
        self.rest_bytes = sum(len(view) for view in self._views)

    def advance(self) -> int:
        """Move what can be moved at once; return how many bytes. Raises TransferAborted."""
        views = self._views[self._first : self._first + _MAX_VIEWS]
        call = self.connection.send_some if self.direction is _SEND else self.connection.take_some
        try:
            count = call(views)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise TransferAborted(f"the connection to the peer broke ({exc.strerror})") from exc
        if not count:
            raise TransferAborted("the peer closed the connection")
        self.rest_bytes -= count
        moved = count
        while count and count >= len(self._views[self._first]):
            count -= len(self._views[self._first])
            self._first += 1
        if count:
            self._views[self._first] = self._views[self._first][count:]
        return moved


async def move(moves: Sequence[Move]) -> None:
    """Finish all moves, side by side. Raises TransferAborted; whoever is cut off leaves bytes half moved."""
    pending = [part for part in moves if part.rest_bytes]
    moved = 0
    while pending:
        count = sum(part.advance() for part in pending)
        pending = [part for part in pending if part.rest_bytes]
        moved += count
        if pending and not count:
            await _ready(pending)
            moved = 0
        elif moved >= _TURN_BYTES:
            await asyncio.sleep(0)
            moved = 0


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _ready(moves: Sequence[Move]) -> None:
    """Wait until one of the moves can go on."""
    future = asyncio.get_running_loop().create_future()
    try:
        for part in moves:
            part.connection.watch(part.direction, future)
        await future
    finally:
        for part in moves:
            part.connection.unwatch(part.direction, future)


class Link:
    """Connections to one peer that are used together: frames go through the first, large payloads through all."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self.control = connections[0]
        self._connections = tuple(connections)

    @property
    def is_silent(self) -> bool:
        """Whether all connections are open and nothing waits to be read."""
        return all(connection.is_silent for connection in self._connections)

    async def send_blocks(self, frames: Sequence[tuple[bytes, memoryview]]) -> None:
        """Send frames, each a header and a payload, in order. Raises TransferAborted."""
        parts: list[list[Buffer]] = [[] for _ in self._connections]
        for header, payload in frames:
            parts[0].append(header)
            start = 0
            for views, size in zip(parts, self._stripes(payload.nbytes), strict=True):
                views.append(payload[start : start + size])
                start += size
        await move([Move(*part) for part in zip(self._connections, (_SEND,) * len(parts), parts, strict=True)])

    async def receive_payload(self, rows: Sequence[memoryview]) -> None:
        """Fill `rows` with one payload. Raises TransferAborted."""
        moves, left = [], [row.cast("B") for row in rows]
        for connection, size in zip(self._connections, self._stripes(sum(len(row) for row in left)), strict=True):
            part, left = _split(left, size)
            moves.append(Move(connection, _RECEIVE, part))
        await move(moves)

    def interrupt(self) -> None:
        """Wake whoever waits with TransferAborted."""
        for connection in self._connections:
            connection.interrupt()

    def close(self) -> None:
        """Close every connection at once; idempotent."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.close()

    def _stripes(self, size: int) -> list[int]:
        """Divide a payload among the connections; both ends do it alike."""
        count = len(self._connections)
        if size < STRIPE_BYTES:
            return [size] + [0] * (count - 1)
        return [size * (index + 1) // count - size * index // count for index in range(count)]


def _split(rows: list[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """Divide rows after `size` bytes."""
    for index, row in enumerate(rows):
        if size < len(row):
            return [*rows[:index], row[:size]], [row[size:], *rows[index + 1 :]]
        size -= len(row)
    return rows, []
