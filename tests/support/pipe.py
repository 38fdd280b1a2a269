"""Streams between a sender and a receiver on one event loop, each of which breaks at a frame of the test's choice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from core.errors import TransferAborted
from kv_transfer.frames import HEADER_BYTES, Header, read_header
from kv_transfer.receiver import Receiver
from kv_transfer.transport import StagedFrame


class Pipe:
    """Both ends of one stream: Outgoing by itself, Incoming in `far`."""

    def __init__(self, frames_to_break: int | None, *, answers_to_break: int | None = None) -> None:
        self.left = frames_to_break  # the frame that finds 0 arrives half, and nothing after it; None: never
        self.answers_left = answers_to_break  # likewise of the receiver's frames
        self.there: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.back: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.broken = False
        self.far = _Far(self)

    async def write(self, message: bytes) -> None:
        if self.broken:
            raise TransferAborted("the pipe is broken")
        if self.left == 0:
            self.there.put_nowait(message[: HEADER_BYTES + (len(message) - HEADER_BYTES) // 2])
            self.break_off()
            raise TransferAborted("the pipe broke")
        if self.left is not None:
            self.left -= 1
        self.there.put_nowait(message)

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        for frame in frames:
            await self.write(frame.header + frame.payload)

    async def read(self) -> bytes:
        return await _get(self.back)

    def close(self) -> None:
        self.break_off()

    def break_off(self) -> None:
        if not self.broken:
            self.broken = True
            self.there.put_nowait(None)
            self.back.put_nowait(None)


class _Far:
    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._payload = b""

    async def header(self) -> Header:
        message = await _get(self._pipe.there)
        self._payload = message[HEADER_BYTES:]
        return read_header(message[:HEADER_BYTES])

    async def payload(self, header: Header) -> bytes:
        if len(self._payload) < header.size:
            raise TransferAborted("the pipe broke")
        return self._payload

    async def land(self, header: Header, rows: Sequence[memoryview]) -> None:
        left = memoryview(self._payload)
        for row in rows:
            part, left = left[: row.nbytes], left[row.nbytes :]
            row[: part.nbytes] = part
            await asyncio.sleep(0)  # a landing takes its time
        if len(self._payload) < header.size:
            raise TransferAborted("the pipe broke")

    async def write(self, message: bytes) -> None:
        pipe = self._pipe
        if pipe.broken or pipe.answers_left == 0:
            pipe.break_off()
            raise TransferAborted("the pipe is broken")
        if pipe.answers_left is not None:
            pipe.answers_left -= 1
        pipe.back.put_nowait(message)

    def close(self) -> None:
        self._pipe.break_off()


class PipeWays:
    """Implements kv_transfer.transport.Ways: one pipe after the other, to one receiver."""

    def __init__(self, receiver: Receiver, pipes: Sequence[Pipe]) -> None:
        self._receiver = receiver
        self._pipes = list(pipes)
        self.served: list[asyncio.Task[None]] = []
        self.log: list[tuple[str, str]] = []
        self.withdrawn: list[str] = []
        self.silent = False  # the receiver is told of nothing that is withdrawn

    async def open(
        self, peer: str, *, attempt: int, failed: frozenset[str], timeout_s: float, num_bytes: int | None = None
    ) -> tuple[str, Pipe]:
        if not self._pipes:
            raise TransferAborted("no way is left")
        name = f"way-{attempt}"
        assert name not in failed
        pipe = self._pipes.pop(0)
        self.served.append(asyncio.ensure_future(self._receiver.serve(pipe.far)))
        return name, pipe

    def done(self, peer: str, name: str, num_bytes: int, seconds: float) -> None:
        self.log.append(("done", name))

    def failed(self, peer: str, name: str) -> None:
        self.log.append(("failed", name))

    async def withdraw(self, peer: str, transfer_id: str, reason: str) -> None:
        self.withdrawn.append(transfer_id)
        if not self.silent:
            self._receiver.refuse(transfer_id, reason)


async def _get(queue: asyncio.Queue[bytes | None]) -> bytes:
    message = await queue.get()
    if message is None:
        queue.put_nowait(None)
        raise TransferAborted("the pipe is broken")
    return message
