"""Connections to one endpoint, kept open and used again, each for one request at a time.

Owns sockets, HTTP/1.1 framing (by httptools) and the bound of each wait. Must not know what is asked or measured.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol, cast

import httptools

from bench.serving.endpoint import Endpoint
from core.errors import reason_of

CONNECT_S: Final = 10.0


class Answer(Protocol):
    """Hears of the answer to one request; all times are of time.perf_counter()."""

    def head(self, status: int) -> None:
        """Take the status; `header` was called for each header before."""

    def header(self, name: bytes, value: bytes) -> None:
        """Take one header."""

    def body(self, data: bytes, now_s: float) -> bool:
        """Take a part of the body; False hangs up, and nothing follows."""

    def ended(self, now_s: float) -> None:
        """Learn that the answer is complete."""

    def failed(self, why: str) -> None:
        """Learn that no complete answer comes."""


class ConnectionPool:
    """As many connections as requests are in flight; a free one is used before another is opened."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._idle: list[_Connection] = []  # all and only the open ones without a request; the latest used is last
        self._busy: set[_Connection] = set()  # all and only those with a request
        self._opening: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def send(self, request: bytes, answer: Answer, timeout_s: float) -> None:
        """Send a request; `answer` hears of all that comes of it, within `timeout_s`."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                self._busy.add(connection)
                connection.send(request, answer, timeout_s, is_reused=True)
                return
        self.open_for(request, answer, timeout_s)

    def open_for(self, request: bytes, answer: Answer, timeout_s: float) -> None:
        """Send over a connection that is opened for it."""
        task = self._loop.create_task(self._open(request, answer, timeout_s))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def freed(self, connection: _Connection) -> None:
        """Take back a connection whose answer is complete."""
        self._busy.discard(connection)
        if connection.is_open:
            self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        """Forget a connection that is closed."""
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def abort_busy(self) -> None:
        """Close the connections whose requests run; those fail."""
        for connection in tuple(self._busy):
            connection.abort()

    async def close(self) -> None:
        """Close every connection; requests that run fail."""
        for task in tuple(self._opening):
            task.cancel()
        for connection in (*self._idle, *self._busy):
            connection.abort()
        if self._opening:
            await asyncio.wait(tuple(self._opening))
        await asyncio.sleep(0)  # the transports close in the next pass of the loop

    async def _open(self, request: bytes, answer: Answer, timeout_s: float) -> None:
        where = self._endpoint
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self), where.host, where.port, ssl=where.tls
                )
        except (OSError, TimeoutError) as exc:
            answer.failed(f"connect to {where.authority}: {reason_of(exc)}")
            return
        except asyncio.CancelledError:
            answer.failed("the client stopped")
            raise
        self._busy.add(connection)
        connection.send(request, answer, timeout_s, is_reused=False)


class _Connection(asyncio.Protocol):
    """One connection; httptools calls the `on_` methods."""

    _transport: asyncio.Transport

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._request = b""
        self._timeout_s = 0.0
        self._is_reused = self._has_heard = self._has_head = False
        self._deadline: asyncio.TimerHandle | None = None
        self._now_s = 0.0
        self.is_open = False

    def send(self, request: bytes, answer: Answer, timeout_s: float, *, is_reused: bool) -> None:
        """Send a request; the one before must have ended."""
        self._request, self._answer, self._timeout_s, self._is_reused = request, answer, timeout_s, is_reused
        self._has_heard = self._has_head = False
        self._deadline = self._loop.call_later(timeout_s, self._give_up)
        self._transport.write(request)

    def abort(self) -> None:
        """Close at once; a request that runs fails, and is not sent again."""
        self.is_open = self._is_reused = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name, and sets TCP_NODELAY
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # nobody asked
            self.abort()
            return
        self._now_s = time.perf_counter()
        self._has_heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(f"no HTTP/1.1 came back: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._pool.lost(self)
        answer = self._answer
        if answer is None:
            return
        if self._is_reused and not self._has_heard:
            # The server closed an idle connection as the request went out: it has not seen it (RFC 9112, 9.3.1).
            self._forget()
            self._pool.open_for(self._request, answer, self._timeout_s)
        else:
            self._fail(f"connection lost: {exc}" if exc else "the server closed the connection")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Pass a header on."""
        if self._answer is not None:
            self._answer.header(name.lower(), value)

    def on_headers_complete(self) -> None:
        """Pass the status on."""
        if self._answer is not None:
            self._has_head = True
            self._answer.head(self._parser.get_status_code())

    def on_body(self, data: bytes) -> None:
        """Pass a part of the body on."""
        if self._answer is not None and not self._answer.body(data, self._now_s):
            answer = self._answer
            self._forget()
            self.abort()
            answer.ended(self._now_s)

    def on_message_complete(self) -> None:
        """End the answer and give the connection back."""
        answer = self._answer
        if answer is None:
            return
        self._forget()
        if self._parser.should_keep_alive():
            self._pool.freed(self)
        else:
            self.is_open = False
            self._transport.close()
        answer.ended(self._now_s)

    def _give_up(self) -> None:
        self._fail(f"no complete answer in {self._timeout_s:g} s")

    def _fail(self, why: str) -> None:
        answer = self._answer
        self._forget()
        if self.is_open:
            self.abort()
        if answer is not None:
            answer.failed(why)

    def _forget(self) -> None:
        self._answer = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
