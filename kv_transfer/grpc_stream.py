"""The two ends of one hand-over stream over gRPC.

Owns how frames are cut into messages, what happens to a stream that is closed or broken off, and the translation of
gRPC errors. Must not know addresses, tokens or what a hand-over is.

Messages are one stream of bytes, except that a frame's header is never cut. One message costs 30-60 us whatever its
size, so small frames share one; a large frame is cut, so that neither end holds more of it than a message or two: what
the receiver does not take, HTTP/2's flow control leaves with the sender.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, TypeVar

import grpc
import grpc.aio
from grpc._cython import cygrpc

from core.errors import CorruptFrame, KVTransferError, TransferAborted, TransferTimeout, Unauthorized
from kv_transfer.copying import copy_hashed
from kv_transfer.frames import HEADER_BYTES, Digest, Header, read_header
from kv_transfer.transport import StagedFrame

# Of frames that are joined or cut. Of 1 MiB, a hand-over of 4,096 tokens takes half as much CPU time again (bench/kv).
MESSAGE_BYTES: Final = 4 << 20
ADMITTED: Final = ("baton-admitted", "1")  # initial metadata of a stream whose token was accepted
_MAX_ANSWERS: Final = 16  # that wait to be read
_CLOSED: Final = "the stream is closed"
_BROKEN_OFF: Final = "a frame of the stream was broken off"
_GONE: Final = (grpc.RpcError, grpc.aio.UsageError, cygrpc.ExecuteBatchError, asyncio.InvalidStateError)
_T = TypeVar("_T")


def translate(exc: grpc.RpcError) -> KVTransferError:
    """Turn a gRPC error into ours."""
    code = exc.code() if isinstance(exc, grpc.aio.AioRpcError) else None
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TransferTimeout("the peer did not answer in time")
    return TransferAborted(f"the stream to the peer broke ({code.name if code else exc})")


class GrpcIncoming:
    """The receiver's end; implements kv_transfer.transport.Incoming."""

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._context = context
        self._message = memoryview(b"")  # what is left of the message that is being taken
        self._reading: asyncio.Future[bytes] | None = None  # outlives a `header` that was cancelled
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_cut = False  # a payload was left half taken: what follows it cannot be told

    async def header(self) -> Header:
        """Wait for the next frame. Raises CorruptFrame, TransferAborted."""
        self._check_open()
        if not self._message:
            await self._read()
        if self._message.nbytes < HEADER_BYTES:
            raise CorruptFrame("a frame header is cut")
        return read_header(self._take(HEADER_BYTES))

    async def payload(self, header: Header) -> bytes:
        """Take the payload of a frame without KV. Raises TransferAborted."""
        data = bytearray(header.size)
        await self._fill([memoryview(data)])
        return bytes(data)

    async def land(self, header: Header, rows: Sequence[memoryview]) -> int:
        """Copy the payload of a BLOCKS frame; nothing is written after it returned or raised."""
        return await self._fill(rows)

    async def write(self, message: bytes) -> None:
        """Answer with one frame. Raises TransferAborted."""
        if self._ended.done():
            raise TransferAborted(_CLOSED)
        try:
            await self._context.write(message)
        except _GONE as exc:
            raise TransferAborted("the sender is gone") from exc

    def close(self) -> None:
        """End the stream at once: what is read or written fails; idempotent."""
        if not self._ended.done():
            self._ended.set_result(None)
        if self._reading is not None:
            self._reading.cancel()

    async def _fill(self, rows: Sequence[memoryview]) -> int:
        """Copy the next bytes; return their digest."""
        self._check_open()
        digest = Digest()
        self._is_cut = True
        for row in rows:
            rest = row
            while rest.nbytes:
                if not self._message:
                    await self._read()
                part = self._take(min(rest.nbytes, self._message.nbytes))
                copy_hashed(rest[: part.nbytes], part, digest)
                rest = rest[part.nbytes :]
        self._is_cut = False
        return int(digest.intdigest())

    async def _read(self) -> None:
        """Wait for the next message. Raises TransferAborted."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._context.read())
            self._reading.add_done_callback(_retrieve)
        await asyncio.wait({self._reading, self._ended}, return_when=asyncio.FIRST_COMPLETED)
        if self._ended.done():
            raise TransferAborted(_CLOSED)
        reading, self._reading = self._reading, None
        try:
            message = reading.result()
        except _GONE as exc:
            raise TransferAborted("the sender is gone") from exc
        if message is grpc.aio.EOF:
            raise TransferAborted("the sender ended the stream")
        self._message = memoryview(message)

    def _take(self, size: int) -> memoryview:
        part, self._message = self._message[:size], self._message[size:]
        return part

    def _check_open(self) -> None:
        if self._ended.done():
            raise TransferAborted(_CLOSED)
        if self._is_cut:
            raise TransferAborted(_BROKEN_OFF)


class GrpcOutgoing:
    """The sender's end; implements kv_transfer.transport.Outgoing."""

    def __init__(
        self,
        call: grpc.aio.StreamStreamCall[bytes, bytes],
        ended: Callable[[GrpcOutgoing], None] = lambda stream: None,
    ) -> None:
        """Use a call that was just made; `ended` is called once, by `close`."""
        self._call = call
        self._ended = ended
        self._is_closed = False
        self._write_lock = asyncio.Lock()
        # Answers are taken as they come: gRPC keeps none for a call in which a write has failed.
        self._answers: asyncio.Queue[bytes | KVTransferError] = asyncio.Queue(_MAX_ANSWERS)
        self._reading: asyncio.Task[None] | None = None

    async def admitted(self) -> None:
        """Wait for the peer's word that it takes the stream. Raises Unauthorized, TransferAborted."""
        metadata = await self._unless_closed(self._call.initial_metadata())
        if ADMITTED in tuple(metadata):
            self._reading = asyncio.create_task(self._take_answers(), name="kv-grpc-read")
            return
        code = await self._unless_closed(self._call.code())
        if code is grpc.StatusCode.UNAUTHENTICATED:
            raise Unauthorized("the peer refused the cluster token")
        raise TransferAborted(f"the peer does not take streams ({code.name})")

    async def write(self, message: bytes) -> None:
        """Send one frame without KV. Raises TransferAborted when the stream is gone."""
        async with self._write_lock:
            await self._send(message)

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        """Send BLOCKS frames in order; waits while the peer takes nothing. Raises TransferAborted."""
        async with self._write_lock:
            for message in _messages(frames):
                await self._send(message)

    async def read(self) -> bytes:
        """Wait for one frame without KV, whole. Raises TransferAborted when the stream is gone."""
        if self._is_closed:
            raise TransferAborted(_CLOSED)
        answer = await self._answers.get()
        if isinstance(answer, KVTransferError):
            self._say_last(answer)  # to the next reader too
            raise answer
        return answer

    def close(self) -> None:
        """End the stream at once; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._call.cancel()
        if self._reading is not None:
            self._reading.cancel()
        while not self._answers.empty():
            self._answers.get_nowait()
        self._say_last(TransferAborted(_CLOSED))
        self._ended(self)

    async def _take_answers(self) -> None:
        try:
            while (message := await self._unless_closed(self._call.read())) is not grpc.aio.EOF:
                await self._answers.put(bytes(message))
            await self._answers.put(TransferAborted("the peer ended the stream"))
        except KVTransferError as exc:
            await self._answers.put(exc)

    def _say_last(self, error: KVTransferError) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._answers.put_nowait(error)

    async def _send(self, message: bytes) -> None:
        await self._unless_closed(self._call.write(message))

    async def _unless_closed(self, operation: Awaitable[_T]) -> _T:
        """Wait for a step of the call, which gRPC ends with CancelledError when `close` has cancelled it."""
        try:
            return await operation
        except grpc.RpcError as exc:
            raise translate(exc) from exc
        except _GONE as exc:  # InvalidStateError: the peer ended it before
            raise TransferAborted(_CLOSED) from exc
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if not self._is_closed or (task is not None and task.cancelling()):
                raise
            raise TransferAborted(_CLOSED) from exc


def _messages(frames: Sequence[StagedFrame]) -> Iterator[bytes]:
    """Join small frames and cut large ones to messages of about MESSAGE_BYTES; no header is cut."""
    parts: list[bytes | memoryview] = []
    size = 0
    for frame in frames:
        if size + HEADER_BYTES > MESSAGE_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(frame.header)
        size += HEADER_BYTES
        rest = frame.payload
        while rest.nbytes:
            part = rest[: MESSAGE_BYTES - size] if size < MESSAGE_BYTES else rest[:0]
            parts.append(part)
            size += part.nbytes
            rest = rest[part.nbytes :]
            if size >= MESSAGE_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    if parts:
        yield b"".join(parts)


def _retrieve(reading: asyncio.Future[bytes]) -> None:
    """Take an error that a stream that was closed has left."""
    if not reading.cancelled():
        reading.exception()
