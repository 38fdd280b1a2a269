"""One UNIX connection between two engines of a host, and the streams that run over it one after another.

Owns who may connect, how descriptors are passed, and where a stream starts and ends on a connection that stays.
A record is one frame; of BLOCKS only the header and where the payload lies. Three records are no frames: START, sent by
the sender of KV; CLOSE, sent by an end that has no use for the stream any more and answered by the other at once, after
which the connection is free for the next stream; and CREDIT, which says how many records were taken. A sender stops at
WINDOW records that were not: it waits for its receiver although a megabyte of KV is a few bytes here.
Knows nothing of what the memory that was passed means.
"""

from __future__ import annotations

import array
import asyncio
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from core.errors import CorruptFrame, KVTransferError, TransferAborted, Unauthorized, WorkerLost
from core.handshake import Handshake, Refused, RouterHandshake, WorkerHandshake
from kv_transfer.frames import HEADER_BYTES, Header, Kind, read_header
from kv_transfer.shm_memory import CACHE, STAGING, Mark
from kv_transfer.vectored import Addresses

_PLACE: Final = struct.Struct("<II")  # where the payload of BLOCKS lies: a memory, pieces of equal size; their offsets
_OFFSET_BYTES: Final = 8
_MAX_PIECES: Final = 1 << 16
_MARK: Final = struct.Struct("<BIQ")  # START: kind, slot, number
_CREDIT: Final = struct.Struct("<BI")  # kind, records
_START, _CLOSE, _CLOSE_FOR_GOOD, _GRANTED = 0xF0, 0xF1, 0xF2, 0xF3  # in the place of a frame's kind
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
_DESCRIPTORS: Final = (2, 3)  # how many travel: of staging memory and board, perhaps of the cache; the byte with them
_MAPPED: Final = b"\x01"
WINDOW: Final = 64  # records on their way and not taken yet: as many MiB of KV in frames of the usual size
CLOSE_S: Final = 5.0  # that the peer has to end a stream that this end has ended


@dataclass(frozen=True, slots=True)
class Record:
    """One frame as it travels."""

    header: Header
    head: bytes  # the header, encoded
    body: bytes  # the payload; of BLOCKS where it lies


def place(memory: int, offsets: bytes) -> bytes:
    """Say where the payload of a BLOCKS frame lies: `offsets` of pieces of equal size in one memory."""
    return _PLACE.pack(memory, len(offsets) // _OFFSET_BYTES) + offsets


def read_place(body: bytes, size: int) -> tuple[int, Addresses, int]:
    """Read where `size` bytes lie: memory, offsets, bytes of each piece. Raises CorruptFrame."""
    memory, count = _PLACE.unpack_from(body)
    if memory not in (STAGING, CACHE) or not count or size % count:
        raise CorruptFrame(f"{size} bytes cannot lie in {count} pieces of memory {memory}")
    return memory, np.frombuffer(body, dtype="<u8", count=count, offset=_PLACE.size), size // count


class Stream:
    """One end of one stream. What came before its end can still be read after it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._records: deque[Record] = deque()
        self._waiters: list[asyncio.Future[None]] = []
        self._read_error: KVTransferError | None = None
        self._write_error: KVTransferError | None = None
        self._credit = WINDOW  # records that may be sent
        self._num_taken = 0  # records that the peer was not told of

    def put(self, record: Record) -> None:
        """Take a record from the connection. Raises CorruptFrame when the peer ignores the window."""
        if len(self._records) >= WINDOW:
            raise CorruptFrame("the peer sends more than it may")
        self._records.append(record)
        self.wake()

    def grant(self, count: int) -> None:
        """Hear from the peer that it has taken records."""
        self._credit += count
        self.wake()

    def end(self, error: KVTransferError, *, can_answer: bool = False) -> None:
        """End what can be read, and unless it `can_answer` what can be written; the first reason stays."""
        self._read_error = self._read_error or error
        if not can_answer:
            self._write_error = self._write_error or error
        self.wake()

    def wake(self) -> None:
        """Let whoever waits look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def next_record(self) -> Record:
        """Wait for a record. Raises why there is none."""
        while not self._records:
            if self._read_error is not None:
                raise self._read_error.with_traceback(None)
            await self._change()
        self._num_taken += 1
        if self._num_taken == WINDOW // 2 and self._write_error is None:
            self._connection.send_record(_CREDIT.pack(_GRANTED, self._num_taken))
            self._num_taken = 0
        return self._records.popleft()

    async def send(self, records: Sequence[bytes]) -> None:
        """Send records; waits while the peer has not taken what was sent before. Raises why the stream ended."""
        start = 0
        while start < len(records):
            self._check_writable()
            if self._credit:
                end = min(start + self._credit, len(records))
                self._credit -= end - start
                self._connection.send(b"".join(records[start:end]))
                start = end
            else:
                await self._change()

    def close(self) -> None:
        """End the stream at both ends."""
        self._records.clear()
        self.end(TransferAborted("the stream was closed at this end"))
        self._connection.release(self)

    def _check_writable(self) -> None:
        if self._write_error is not None:
            raise self._write_error.with_traceback(None)

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)


class Connection(asyncio.Protocol):
    """One connection after its handshake; has at most one stream at a time."""

    def __init__(
        self,
        on_start: Callable[[Connection, Stream, Mark], None] | None,  # None: this end starts streams
        on_idle: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
    ) -> None:
        self._on_start = on_start
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._held = b""  # START, until there is something to send with it
        self._stream: Stream | None = None  # what this end has not closed
        self._peer_open = False  # the peer has not closed it
        self._is_broken = False  # nothing that comes can be understood, or no stream will come after this one
        self._close_timer: asyncio.TimerHandle | None = None
        self.is_lost = False

    def start(self, mark: Mark) -> Stream:
        """Start a stream on an idle connection; one that writes at once needs no packet more for it."""
        self._stream, self._peer_open = Stream(self), True
        self._held = _MARK.pack(_START, mark.slot, mark.number).ljust(HEADER_BYTES, b"\0")
        asyncio.get_running_loop().call_soon(self._send_held)
        return self._stream

    def has_peer(self) -> bool:
        """Tell whether the peer is there: what the kernel knows, before the event loop has heard of it."""
        if self._transport is None or self.is_lost:
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return not poll.poll(0)

    def send(self, data: bytes) -> None:
        """Queue bytes; how many there can be is bounded by WINDOW."""
        if self._transport is not None and not self.is_lost:
            self._transport.write(self._held + data)
            self._held = b""

    def send_record(self, start: bytes) -> None:
        """Queue a record that is no frame."""
        self.send(start.ljust(HEADER_BYTES, b"\0"))

    def release(self, stream: Stream) -> None:
        """Close a stream at this end; one that is no longer current was closed before."""
        if self._stream is not stream:
            return
        self._stream = None
        if self.is_lost:
            return
        self.send_record(bytes((_CLOSE_FOR_GOOD if self._is_broken else _CLOSE,)))
        self._close_timer = asyncio.get_running_loop().call_later(CLOSE_S, self.abort)
        self._settle()

    def abort(self) -> None:
        """End the connection at once; idempotent."""
        if self._transport is not None:
            self._transport.abort()
        self._lose()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits that the peer is gone."""
        self._lose()

    def data_received(self, data: bytes) -> None:
        """Take whole records out of what has come."""
        if self._is_broken:
            return
        self._buffer += data
        try:
            while (taken := self._take_record()) and not self._is_broken:
                del self._buffer[:taken]
        except CorruptFrame as exc:
            self._is_broken = True
            self._buffer.clear()
            if self._stream is None:
                self.abort()
            else:
                self._stream.end(exc, can_answer=True)

    def _take_record(self) -> int:
        """Take one record; return how long it was, 0 when it is not whole."""
        head = bytes(self._buffer[:HEADER_BYTES])
        if len(head) < HEADER_BYTES:
            return 0
        if _START <= head[0] <= _GRANTED:
            self._switch(head)
            return HEADER_BYTES
        header = read_header(head)
        end = HEADER_BYTES + (self._place_bytes() if header.kind is Kind.BLOCKS else header.size)
        if len(self._buffer) < end:
            return 0
        if not self._peer_open:
            raise CorruptFrame("a frame came outside any stream")
        if self._stream is not None:
            self._stream.put(Record(header, head, bytes(self._buffer[HEADER_BYTES:end])))
        return end

    def _place_bytes(self) -> int:
        """Say how long the record of a BLOCKS frame is, as far as it has come. Raises CorruptFrame."""
        if len(self._buffer) < HEADER_BYTES + _PLACE.size:
            return _PLACE.size
        count = _PLACE.unpack_from(self._buffer, HEADER_BYTES)[1]
        if count > _MAX_PIECES:
            raise CorruptFrame(f"a frame in {count} pieces")
        return int(_PLACE.size + count * _OFFSET_BYTES)

    def _switch(self, head: bytes) -> None:
        """Take a record that is no frame: of START, CLOSE and CREDIT the first one is the sender's alone."""
        if head[0] == _START:
            if self._on_start is None or self._stream is not None or self._peer_open:
                raise CorruptFrame("a stream was started where none may")
            _, slot, number = _MARK.unpack_from(head)
            self._stream, self._peer_open = Stream(self), True
            self._on_start(self, self._stream, Mark(slot, number))
            return
        if not self._peer_open:
            raise CorruptFrame("a record came outside any stream")
        if head[0] == _GRANTED:
            if self._stream is not None:
                self._stream.grant(_CREDIT.unpack_from(head)[1])
            return
        self._peer_open = False
        self._is_broken = head[0] == _CLOSE_FOR_GOOD
        if self._stream is None:
            self._settle()
            return
        self._stream.end(TransferAborted("the peer closed the stream"))  # what it sent before stays to be read
        self.release(self._stream)

    def _send_held(self) -> None:
        if self._held:
            self.send(b"")

    def _settle(self) -> None:
        """Free the connection for the next stream when both ends have closed this one."""
        if self._stream is not None or self._peer_open:
            return
        if self._close_timer is not None:
            self._close_timer.cancel()
        if self._is_broken:
            self.abort()
        else:
            self._on_idle(self)

    def _lose(self) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        if self._close_timer is not None:
            self._close_timer.cancel()
        if self._stream is not None:
            self._stream.end(TransferAborted("the peer is gone"))
        self._on_lost(self)


def is_same_user(sock: socket.socket) -> bool:
    """Tell whether the process at the other end runs as the user of this one; the kernel's word, not the peer's."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(raw)[1] == os.geteuid())


async def offer_memory(sock: socket.socket, token: str, fds: Sequence[int]) -> None:
    """Prove the token to a listener, then pass it staging memory, board and perhaps cache; returns when it is mapped.

    Raises Unauthorized, TransferAborted or OSError.
    """
    if not is_same_user(sock):
        raise Unauthorized("what listens runs as another user")
    loop = asyncio.get_running_loop()
    try:
        await _shake_hands(sock, RouterHandshake(token))
    except WorkerLost as exc:
        raise TransferAborted(str(exc)) from exc
    socket.send_fds(sock, [bytes((len(fds),))], list(fds))  # one byte into an empty buffer: never blocks
    if await loop.sock_recv(sock, 1) != _MAPPED:
        raise TransferAborted("the peer did not take this engine's memory; its log says why")


async def receive_memory(sock: socket.socket, token: str, take: Callable[[Sequence[int]], None]) -> None:
    """Judge who connected, then `take` the descriptors it passes, which are closed thereafter.

    Raises Unauthorized, CorruptFrame, TransferAborted, OSError, or what `take` raises.
    """
    if not is_same_user(sock):
        raise Unauthorized("who connected runs as another user")
    await _shake_hands(sock, WorkerHandshake(token))
    await _readable(sock)
    fds = array.array("i")
    size = socket.CMSG_SPACE(max(_DESCRIPTORS) * fds.itemsize)
    data, ancillary, flags, _ = sock.recvmsg(1, size, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    try:
        if len(fds) not in _DESCRIPTORS or data != bytes((len(fds),)) or flags & socket.MSG_CTRUNC:
            raise CorruptFrame("expected two or three descriptors")
        take(fds)
    finally:
        for fd in fds:
            os.close(fd)
    await asyncio.get_running_loop().sock_sendall(sock, _MAPPED)


async def _shake_hands(sock: socket.socket, handshake: Handshake) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, handshake.opening())
    while handshake.needed:
        data = b""
        while len(data) < handshake.needed:
            part = await loop.sock_recv(sock, handshake.needed - len(data))
            if not part:
                raise TransferAborted("the peer left during the handshake")
            data += part
        try:
            reply = handshake.take(data)
        except Refused as exc:
            if exc.reply:
                await loop.sock_sendall(sock, exc.reply)
            raise
        if reply:
            await loop.sock_sendall(sock, reply)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock)
