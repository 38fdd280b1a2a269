"""A network in memory between real senders and receivers, and a clock that stands still, to test the lease protocol.

Frames of the sender wait until they are let through, one stream as far as another is not; a payload is read out of
staging memory only then, as over shared memory. Answers come at once.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Sequence

from core.errors import CorruptFrame, TransferAborted
from kv_transfer.frames import HEADER_BYTES, Header, read_header
from kv_transfer.transport import Incoming, Outgoing, Serve, StagedFrame

Frame = tuple[bytes, memoryview]  # header, payload
MAX_TURNS = 10_000  # of the loop, in which all comes to rest that waits neither for a frame nor for the clock


class StillLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.errors: list[dict[str, object]] = []  # that no task took
        super().__init__(selectors.DefaultSelector())
        self.set_exception_handler(lambda loop, context: self.errors.append(context))

    def time(self) -> float:
        return self.now_s

    def rest(self) -> None:
        """Run everything that can run now."""
        self.run_until_complete(self._turns())

    async def _turns(self) -> None:
        num_idle = 0
        for _ in range(MAX_TURNS):
            await asyncio.sleep(0)
            num_idle = 0 if self._ready else num_idle + 1  # type: ignore[attr-defined]
            if num_idle == 3:  # what came from a thread, or by the clock, is seen one turn later
                return
        raise AssertionError("something runs for ever")

    def do(self, call: Callable[..., object], *arguments: object) -> None:
        """Make a call from within the loop, and run what it brings."""
        self.call_soon(call, *arguments)
        self.rest()

    def advance(self, seconds: float) -> None:
        """Let time pass, and run what it brings."""
        self.now_s += seconds
        self.rest()


class Stream:
    """Both ends of one stream."""

    def __init__(self, *, permits: int, is_slow: bool) -> None:
        self.frames: deque[Frame] = deque()  # under way to the receiver
        self.permits = permits  # frames that may arrive
        self.is_slow = is_slow  # payloads arrive by halves, the second when this is unset
        self.is_broken = False
        self.sender_left = False
        self._answers: deque[bytes] = deque()
        self._receiver_left = False
        self._current = memoryview(b"")
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Have both ends look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.is_broken:
                raise TransferAborted("the stream broke")
            await self._changed.wait()

    # Receiver

    async def next_header(self) -> Header:
        """Wait for a frame that is let through."""
        await self._until(lambda: self._receiver_left or bool(self.permits and (self.frames or self.sender_left)))
        if self._receiver_left or not self.frames:
            raise TransferAborted("the stream ended")
        self.permits -= 1
        header, self._current = self.frames.popleft()
        if len(header) != HEADER_BYTES:
            raise CorruptFrame("a frame header is cut")
        return read_header(header)

    async def fill(self, rows: Sequence[memoryview]) -> None:
        """Write the current payload, perhaps in two halves."""
        data, cut = self._current, self._current.nbytes // 2
        start = 0
        for row in rows:
            end = start + row.nbytes
            first = max(0, min(cut, end) - start)
            row[:first] = data[start : start + first]
            if start <= cut < end:
                await self._until(lambda: not self.is_slow or self._receiver_left)
                if self._receiver_left:
                    raise TransferAborted("the stream is closed")
            row[first:] = data[start + first : end]
            start = end


class MemoryIncoming(Incoming):
    """The receiver's end."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def header(self) -> Header:
        return await self._stream.next_header()

    async def payload(self, header: Header) -> bytes:
        return bytes(self._stream._current)

    async def land(self, header: Header, rows: Sequence[memoryview]) -> None:
        if sum(row.nbytes for row in rows) != self._stream._current.nbytes:
            raise CorruptFrame("a frame of another size")
        await self._stream.fill(rows)

    async def write(self, message: bytes) -> None:
        if self._stream.is_broken or self._stream.sender_left:
            raise TransferAborted("the sender is gone")
        self._stream._answers.append(message)
        self._stream.wake()

    def close(self) -> None:
        self._stream._receiver_left = True
        self._stream.wake()


class MemoryOutgoing(Outgoing):
    """The sender's end; what is under way when it closes still arrives."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def write(self, message: bytes) -> None:
        self._send(message[:HEADER_BYTES], memoryview(message)[HEADER_BYTES:])

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        for frame in frames:
            self._send(frame.header, frame.payload)

    async def read(self) -> bytes:
        stream = self._stream
        await stream._until(lambda: bool(stream._answers) or stream._receiver_left or stream.sender_left)
        if stream.sender_left or not stream._answers:
            raise TransferAborted("the stream ended")
        return stream._answers.popleft()

    def close(self) -> None:
        self._stream.sender_left = True
        self._stream.wake()

    def _send(self, header: bytes, payload: memoryview) -> None:
        if self._stream.is_broken or self._stream.sender_left or self._stream._receiver_left:
            raise TransferAborted("the stream is closed")
        self._stream.frames.append((header, payload))
        self._stream.wake()


class Network:
    """All streams to one receiver at a time; implements kv_transfer.transport.Ways."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.serve: Serve | None = None  # None: nobody listens
        self.streams: list[Stream] = []
        self.permits, self.is_slow = 0, False  # of new streams
        self.serving: set[asyncio.Task[None]] = set()

    async def connect(self) -> Stream:
        """Open a stream to whoever listens."""
        if self.serve is None:
            raise TransferAborted("nobody listens")
        stream = Stream(permits=self.permits, is_slow=self.is_slow)
        self.streams.append(stream)
        task = self._loop.create_task(self._run(self.serve, stream))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        return stream

    async def _run(self, serve: Serve, stream: Stream) -> None:
        incoming = MemoryIncoming(stream)
        try:
            await serve(incoming)
        finally:
            incoming.close()

    async def open(
        self, peer: str, *, attempt: int, failed: frozenset[str], timeout_s: float, num_bytes: int | None = None
    ) -> tuple[str, Outgoing]:
        return "memory", MemoryOutgoing(await self.connect())

    def done(self, peer: str, name: str, num_bytes: int, seconds: float) -> None:
        pass

    def failed(self, peer: str, name: str) -> None:
        pass
