"""A client that sends whatever it is told to, byte by byte, and leaves when it likes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.support.router_site import MODEL

WAIT_S = 20.0
PROMPT = {"model": MODEL, "prompt": "the sea", "max_tokens": 2}


@dataclass(frozen=True, slots=True)
class RawReply:
    """The first answer on a connection; status 0 when there was none."""

    status: int
    body: bytes

    def check(self) -> None:
        """Fail unless it is an answer of any kind but "I broke", in the one shape of errors."""
        assert self.status < 500, self.body[:500]
        if self.status >= 400:
            error = json.loads(self.body)["error"]
            assert error["code"] == self.status
            assert error["message"]


def post(body: bytes, *, path: str = "/v1/completions", headers: bytes = b"") -> bytes:
    """Write a whole request; `headers` are lines that end in CRLF."""
    return head(len(body), path=path, headers=headers) + body


def head(length: int, *, path: str = "/v1/completions", headers: bytes = b"") -> bytes:
    """Write the head of a request whose body is `length` bytes long."""
    kind = b"host: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    return b"POST %s HTTP/1.1\r\n%scontent-length: %d\r\n%s\r\n" % (path.encode(), kind, length, headers)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection, and break it off at the end."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def converse(url: str, *sent: bytes) -> RawReply:
    """Send everything and read until the router closes the connection."""
    async with connected(url) as (reader, writer), asyncio.timeout(WAIT_S):
        try:
            for data in sent:
                writer.write(data)
                await writer.drain()
            raw = await reader.read()
        except ConnectionError:  # closed with our bytes unread
            raw = b""
    first, _, body = raw.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in first.lower():
        body = _unchunked(body)
    return RawReply(int(first.split()[1]) if first else 0, body)


def _unchunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
    return body
