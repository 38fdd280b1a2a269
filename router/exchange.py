"""One HTTP request and its response, seen through ASGI.

Owns reading the body within its limit, the order of response messages, and the wait for the client to leave.
Must not know workers or routes.
"""

from __future__ import annotations

from typing import Final

from starlette.types import Receive, Scope, Send

from core.errors import PayloadTooLarge
from router.errors import Headers

FORWARDED: Final = frozenset(
    (b"content-type", b"accept", b"traceparent", b"tracestate", b"endpoint-load-metrics-format")
)
LINGER_BYTES: Final = 64 << 20  # read and dropped of a body that is refused


class ClientGone(Exception):
    """The client closed its connection; nothing can be answered."""


class Exchange:
    """A client's request with the means to answer it once."""

    __slots__ = ("_receive", "_send", "forwarded", "headers", "method", "path", "request_id", "sent", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Wrap one ASGI connection; `path` is what a worker is asked for, the query is taken over."""
        self._receive = receive
        self._send = send
        self.method: str = scope["method"]
        query: bytes = scope["query_string"]
        self.path = f"{path}?{query.decode('latin-1')}" if query else path
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = ""
        self.started = False  # the response's head is out
        self.sent = False  # some of its body is out, so that no other worker can answer any more

    def header(self, name: bytes) -> str | None:
        """Read one request header; of several equal ones, the last."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def read_body(self, limit_bytes: int) -> bytes:
        """Read the whole body, but never more than one network read beyond `limit_bytes`.

        Raises PayloadTooLarge, ClientGone.
        """
        declared = self.headers.get(b"content-length")
        if declared is not None and int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            return self._bounded(message.get("body", b""), limit_bytes)
        body = bytearray()
        while message["type"] == "http.request":
            body += message.get("body", b"")
            if len(body) > limit_bytes:
                raise _too_large(limit_bytes)
            if not message.get("more_body"):
                return bytes(body)
            message = await self._receive()
        raise ClientGone

    @staticmethod
    def _bounded(body: bytes, limit_bytes: int) -> bytes:
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        return body

    async def client_gone(self) -> None:
        """Wait until the client has left or the response is complete; call it only after the body is read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of the response."""
        self.started = True
        headers.append((b"x-request-id", self.request_id.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send some of the body; waits while the client does not read."""
        self.sent = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """Send the rest of the body and end the response."""
        self.sent = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a complete response."""
        headers.append((b"content-length", b"%d" % len(body)))
        await self.start(status, headers)
        await self.finish(body)

    async def respond_unread(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a complete response to a request whose body was not read to its end, then close the connection.

        Closing with bytes unread resets the connection, and most clients then lose the response: they send all
        before they read. So the rest is read and thrown away first, up to LINGER_BYTES.
        """
        headers += [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        await self.start(status, headers)
        await self.write(body)
        left_bytes = LINGER_BYTES
        while left_bytes > 0:
            message = await self._receive()
            left_bytes -= len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await self.finish()


def _too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is larger than {limit_bytes} bytes, the limit router.max_body_mb")
