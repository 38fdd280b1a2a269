"""A closed loop of HTTP connections that costs a few microseconds a request.

Owns connections, requests and what is noted of them. Must not know what it loads: any server that answers OpenAI
completions over HTTP/1.1 with keep-alive will do.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Final, cast

from bench.router.answers import STAMP

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_EVENT_END: Final = b"\n\n\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
_WORDS: Final = "the quick brown fox jumps over the lazy dog while nobody looks and "
_RETRY_S: Final = 0.05  # after an error, so that a dead server is not hammered
_NUMBER_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked, over and over."""

    connections: int
    prompt_bytes: int = 400
    max_tokens: int = 16
    stream: bool = False


@dataclass(slots=True)
class Notes:
    """What was seen since the notes were opened; times in nanoseconds."""

    began_ns: int
    latencies: list[int] = field(default_factory=list)
    first_tokens: list[int] = field(default_factory=list)
    relays: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    errors: int = 0
    first_error: str = ""

    def error(self, text: str) -> None:
        """Count an error."""
        self.errors += 1
        self.first_error = self.first_error or text


class Requests:
    """Makes requests whose prompts share no beginning with one another."""

    def __init__(self, load: Load, port: int, *, first: int = 1) -> None:
        """Prepare the parts that do not change; prompts are numbered from `first`."""
        filler = (_WORDS * (load.prompt_bytes // len(_WORDS) + 1))[: max(0, load.prompt_bytes - _NUMBER_BYTES)]
        self._load = load
        self._port = port
        self._tail = filler.encode() + b'"'
        self._numbers = count(first)
        self._usual = self._around(load.max_tokens)

    def next(self, max_tokens: int | None = None) -> bytes:
        """Make the next request, of `max_tokens` if they are not the usual number."""
        head, tail = self._usual if max_tokens is None else self._around(max_tokens)
        return b"%b%016d%b" % (head, next(self._numbers), tail)

    def _around(self, max_tokens: int) -> tuple[bytes, bytes]:
        """Make what stands before and behind the number of the prompt."""
        stream = b',"stream":true' if self._load.stream else b""
        tail = b'%b,"max_tokens":%d,"temperature":0%b}' % (self._tail, max_tokens, stream)
        start = b'{"model":"mock","prompt":"'
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b"
        )
        return head % (self._port, len(start) + _NUMBER_BYTES + len(tail), start), tail


class Clients:
    """The connections of one run."""

    def __init__(self, load: Load, port: int, *, first_prompt: int = 1) -> None:
        self.load = load
        self.requests = Requests(load, port, first=first_prompt)
        self.notes = Notes(time.monotonic_ns())
        self.is_over = False
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Open all connections; the streams of each are shifted against the others', as in life."""
        for index in range(self.load.connections):
            # The first is of another length: else all streams would begin and end in the same step.
            shift = 1 + index * self.load.max_tokens // self.load.connections if self.load.stream else None
            await self._open(shift)

    def reopen(self) -> None:
        """Open a connection in place of one that was lost, after a while."""
        task = asyncio.create_task(self._reopen())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def turn_page(self) -> Notes:
        """Return the notes so far and begin new ones."""
        notes, self.notes = self.notes, Notes(time.monotonic_ns())
        return notes

    async def _open(self, first_tokens: int | None) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _Connection(self, first_tokens), "127.0.0.1", self._port)
        except OSError as exc:
            self.notes.error(f"connect: {exc.strerror}")
            self.reopen()

    async def _reopen(self) -> None:
        await asyncio.sleep(_RETRY_S)
        if not self.is_over:
            await self._open(None)


class _Connection(asyncio.Protocol):
    """Sends a request, reads its answer, and again."""

    __slots__ = (
        "_buffer",
        "_clients",
        "_first_tokens",
        "_is_refused",
        "_is_stream",
        "_last_ns",
        "_sent_ns",
        "_tokens",
        "_transport",
        "_wanted",
    )

    _transport: asyncio.Transport

    def __init__(self, clients: Clients, first_tokens: int | None) -> None:
        self._clients = clients
        self._is_stream = clients.load.stream
        self._first_tokens = first_tokens
        self._is_refused = False
        self._buffer = b""  # what was read and not yet used
        self._tokens = self._wanted = 0
        self._sent_ns = 0
        self._last_ns = 0  # when a part of the stream came; 0 before its head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._send(self._first_tokens)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._clients.is_over:
            return
        if not self._is_refused:
            self._clients.notes.error(f"connection lost: {exc}" if exc else "connection closed by the server")
        self._clients.reopen()

    def data_received(self, data: bytes) -> None:
        if self._is_stream and self._last_ns:
            self._take_events(data)
            return
        buffer = self._buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        if buffer[9:12] != b"200":
            self._refused(buffer)
        elif self._is_stream:
            self._buffer = b""
            self._last_ns = self._sent_ns
            self._take_events(buffer[end + 4 :])
        elif self._is_whole(buffer, end):
            clients = self._clients
            clients.notes.latencies.append(time.monotonic_ns() - self._sent_ns)
            self._send()

    def _send(self, max_tokens: int | None = None) -> None:
        clients = self._clients
        if clients.is_over:
            self._transport.abort()
            return
        self._buffer = b""
        self._tokens, self._wanted = 0, max_tokens or clients.load.max_tokens
        self._last_ns = 0
        request = clients.requests.next(max_tokens)
        self._sent_ns = time.monotonic_ns()
        self._transport.write(request)

    @staticmethod
    def _is_whole(buffer: bytes, end: int) -> bool:
        found = _LENGTH.search(buffer, 0, end + 2)
        return buffer.endswith(_LAST_CHUNK) if found is None else len(buffer) >= end + 4 + int(found[1])

    def _take_events(self, data: bytes) -> None:
        """Note each token of a stream; an event that is cut waits for its rest."""
        now_ns = time.monotonic_ns()
        if self._buffer:
            data = self._buffer + data
        self._buffer = b""
        if not data.endswith(_EVENT_END):  # what is cut, and enough before it to know the last chunk by, is kept
            cut = data.rfind(b"\n") + 1
            data, self._buffer = data[:cut], data[max(0, cut - len(_LAST_CHUNK)) :]
        notes = self._clients.notes
        at = data.find(STAMP)
        while at >= 0:  # two searches for bytes cost a third of one for a pattern
            end = data.index(b";", at)
            notes.relays.append(now_ns - int(data[at + len(STAMP) : end]))
            if self._tokens:
                notes.gaps.append(now_ns - self._last_ns)
            else:
                notes.first_tokens.append(now_ns - self._sent_ns)
            self._tokens += 1
            self._last_ns = now_ns
            at = data.find(STAMP, end)
        if data.endswith(_LAST_CHUNK):
            self._ended(now_ns)

    def _ended(self, now_ns: int) -> None:
        notes = self._clients.notes
        if self._tokens == self._wanted:
            notes.latencies.append(now_ns - self._sent_ns)
        else:
            notes.error(f"{self._tokens} of {self._wanted} tokens came")
        self._send()

    def _refused(self, buffer: bytes) -> None:
        self._clients.notes.error(buffer[:300].decode("latin-1"))
        self._is_refused = True
        self._transport.abort()
