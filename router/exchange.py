"""One HTTP request and its response, straight on the client's connection.

Owns reading the body within its limit, the bytes and the order of the response, and the bound on what a client leaves
unread. Must not know workers or routes. Writing never waits: bytes go to the transport as they come, and
`is_behind` tells when too many are stuck there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final, Protocol, Self

from core.errors import BatonError, PayloadTooLarge

FORWARDED: Final = (b"content-type", b"accept", b"traceparent", b"tracestate", b"endpoint-load-metrics-format")
LINGER_BYTES: Final = 64 << 20  # read and dropped of a body that is refused
MAX_UNREAD_BYTES: Final = 4 << 20  # of a response, stuck in this process because the client does not read
CLOSE_S: Final = 5.0  # for a client that was behind to read its last words
_BAD_NAME: Final = re.compile(rb'[\x00-\x1f\x7f()<>@,;:\[\]={} \t\\"]')
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_WITHOUT_BODY: Final = (204, 304)  # RFC 9110, 8.6
_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}

Headers = Iterable[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client closed its connection; nothing can be answered."""


class Connection(Protocol):
    """What an exchange needs of the connection it is on."""

    transport: asyncio.Transport

    def default_headers(self) -> bytes:
        """Write the headers of every response."""
        ...

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        ...


def header_block(headers: Headers) -> bytes:
    """Write header lines. Raises BatonError for what is no header, so that none can smuggle in another."""
    lines = []
    for name, value in headers:
        if _BAD_NAME.search(name) or _BAD_VALUE.search(value):
            raise BatonError(f"{name!r}: {value!r} is no header")
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


class Exchange:
    """A client's request with the means to answer it once; to uvicorn it is a cycle of request and response."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_connection",
        "_drops_body",
        "_expects_continue",
        "_extra",
        "_is_chunked",
        "_is_http_1_0",
        "_waiter",
        "disconnected",
        "headers",
        "keep_alive",
        "method",
        "more_body",
        "on_gone",
        "path",
        "request_id",
        "response_complete",
        "response_started",
        "sent",
    )

    def __init__(
        self,
        connection: Connection,
        *,
        method: str,
        path: str,
        headers: Headers | dict[bytes, bytes] = (),
        keep_alive: bool = True,
        is_http_1_0: bool = False,
        expects_continue: bool = False,
    ) -> None:
        """Begin an exchange whose head has arrived; `path` is what a worker is asked for, with its query."""
        self._connection = connection
        self.method = method
        self.path = path
        self.headers: dict[bytes, bytes] = dict(headers)
        self.request_id = ""
        self.on_gone: Callable[[], None] | None = None  # called once if the client leaves before the response is out
        self.sent = False  # some of the body is out, so that no other worker can answer any more
        self._is_http_1_0 = is_http_1_0
        self._expects_continue = expects_continue
        self._extra: list[tuple[bytes, bytes]] = []
        self._is_chunked = False
        self._body: list[bytes] = []  # what arrived and nobody has read
        self._body_bytes = 0
        self._drops_body = False
        self._waiter: asyncio.Future[None] | None = None
        # By these names uvicorn knows a cycle.
        self.keep_alive = keep_alive and not is_http_1_0
        self.more_body = True
        self.response_started = False  # the response's head is out
        self.response_complete = False
        self.disconnected = False

    def header(self, name: bytes) -> str | None:
        """Read one request header; of several equal ones, the last."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    # -- the request ---------------------------------------------------------------------------------------------------

    def take_body(self, data: bytes) -> None:
        """Keep the next bytes of the body."""
        self._body_bytes += len(data)
        if not self._drops_body:
            self._body.append(data)
        self._wake()

    def take_end(self) -> None:
        """Learn that the body is complete."""
        self.more_body = False
        self._wake()

    async def read_body(self, limit_bytes: int) -> bytes:
        """Read the whole body, but never more than one network read beyond `limit_bytes`.

        Raises PayloadTooLarge, ClientGone.
        """
        declared = self.headers.get(b"content-length")
        if declared is not None and int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
        while self.more_body:
            if self._body_bytes > limit_bytes:
                raise _too_large(limit_bytes)
            self._invite_body()
            await self._arrival()
        if self._body_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        if self.disconnected:  # nobody waits for an answer, so none is made
            raise ClientGone
        body, self._body = self._body, []
        return body[0] if len(body) == 1 else b"".join(body)

    def leave(self) -> None:
        """Learn that the client is gone."""
        self.disconnected = True
        self._wake()
        if self.on_gone is not None and not self.response_complete:
            gone, self.on_gone = self.on_gone, None
            gone()

    # -- the response --------------------------------------------------------------------------------------------------

    @property
    def is_behind(self) -> bool:
        """Whether the client leaves too much unread."""
        return self._connection.transport.get_write_buffer_size() > MAX_UNREAD_BYTES

    def add_header(self, name: bytes, value: bytes) -> None:
        """Add a header to the response, whoever makes it; before its head is out."""
        self._extra.append((name, value))

    def start(self, status: int, block: bytes) -> None:
        """Send the head of a response whose body comes in pieces; `block` is made by `header_block`."""
        self._is_chunked = not self._is_http_1_0
        if not self._is_chunked:
            self.keep_alive = False  # the end of the connection is the end of the body
        self._write(self._head(status, block, b"transfer-encoding: chunked\r\n" if self._is_chunked else b""))

    def write(self, data: bytes) -> None:
        """Send some of the body, not empty."""
        self.sent = True
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    def finish(self, data: bytes = b"") -> None:
        """Send the rest of the body and end the response."""
        self.sent = True
        if self._is_chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        if data:
            self._write(data)
        self._complete()

    def respond(self, status: int, block: bytes, body: bytes) -> None:
        """Send a complete response."""
        self.sent = True
        length = b"" if status in _WITHOUT_BODY else b"content-length: %d\r\n" % len(body)
        self._write(self._head(status, block, length) + body if length else self._head(status, block, b""))
        self._complete()

    async def respond_unread(self, status: int, block: bytes, body: bytes) -> None:
        """Send a complete response to a request whose body was not read to its end, then close the connection.

        Closing with bytes unread resets the connection, and most clients then lose the response: they send all
        before they read. So the rest is read and thrown away first, up to LINGER_BYTES.
        """
        self.sent = True
        self.keep_alive = False
        self._write(self._head(status, block, b"content-length: %d\r\n" % len(body)) + body)
        self._drops_body = True
        self._body.clear()
        end_bytes = self._body_bytes + LINGER_BYTES
        while self.more_body and self._body_bytes < end_bytes and not self.disconnected:
            await self._arrival()
        self._complete()

    # -- as uvicorn knows a cycle --------------------------------------------------------------------------------------

    @property
    def message_event(self) -> Self:
        """What uvicorn sets when something happened to a cycle."""
        return self

    def set(self) -> None:
        """Do nothing: who has something to tell calls `take_body`, `take_end` or `leave`."""

    def give_up(self) -> None:
        """Close the connection, the response incomplete or not."""
        self.keep_alive = False
        if not self.response_complete:
            self._complete()

    def _head(self, status: int, block: bytes, length: bytes) -> bytes:
        self.response_started = True
        if self._expects_continue and self.more_body:  # the client may send its body or leave it: nobody can tell
            self.keep_alive = False
        close = b"" if self.keep_alive else b"connection: close\r\n"
        return b"%b%b%b%bx-request-id: %b\r\n%b%b\r\n" % (
            _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status,
            self._connection.default_headers(),
            block,
            header_block(self._extra) if self._extra else b"",
            self.request_id.encode("latin-1"),
            length,
            close,
        )

    def _write(self, data: bytes) -> None:
        if not self.disconnected:
            self._connection.transport.write(data)

    def _complete(self) -> None:
        self.response_complete = True
        if self.disconnected:
            return
        transport = self._connection.transport
        if not self.keep_alive:
            if self.is_behind:
                asyncio.get_running_loop().call_later(CLOSE_S, transport.abort)
            transport.close()
        self._connection.on_response_complete()

    def _invite_body(self) -> None:
        if self._expects_continue:
            self._expects_continue = False
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _arrival(self) -> None:
        """Wait for more of the body. Raises ClientGone."""
        if not self.disconnected:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.disconnected:
            raise ClientGone

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {limit_bytes} bytes, the limit router.max_body_mb")
