"""Reading a request and writing its response against clients that misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from core.engine import HttpCall, ReplySink
from core.errors import BatonError, PayloadTooLarge
from router import exchange
from router.exchange import LINGER_BYTES, ClientGone, Exchange, header_block
from tests.support.router_site import Site

PROMPT = {"prompt": "the sea was calm"}


async def test_declared_body_beyond_the_limit_is_not_read(tight: Site) -> None:
    reader, writer = await asyncio.open_connection(*tight.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head
    body = await reader.read()  # the server closes
    assert json.loads(body)["error"]["type"] == "payload_too_large"
    writer.close()
    await writer.wait_closed()


async def test_body_beyond_the_limit_is_answered_after_it_is_sent(tight: Site) -> None:
    async def undeclared() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 65536

    async with httpx.AsyncClient(base_url=tight.url) as client:
        for content in (undeclared(), b" " * 6_000_000):
            reply = await client.post("/v1/completions", content=content)
            assert reply.status_code == 413
            assert reply.json()["error"]["code"] == 413
            await tight.until_idle()  # one request at a time, and the refused one lasts until its body is gone
        exact = json.dumps(PROMPT).encode().ljust(1000)
        assert (await client.post("/tokenize", content=exact)).status_code == 404  # the worker's answer
        await tight.until_idle()
        assert (await client.post("/tokenize", content=exact + b" ")).status_code == 413


async def test_endless_body_is_cut_off(tight: Site) -> None:
    _, writer = await asyncio.open_connection(*tight.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"

    async def send_too_much() -> None:
        for _ in range(2 * LINGER_BYTES // len(chunk)):
            writer.write(chunk)
            await writer.drain()

    with pytest.raises(ConnectionError):
        await send_too_much()
    writer.close()
    await tight.until_idle()


async def test_body_that_never_comes_is_given_up(tight: Site) -> None:
    reader, writer = await asyncio.open_connection(*tight.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 504 ")
    writer.close()
    await writer.wait_closed()


async def test_client_that_leaves_while_sending_is_forgotten(tight: Site) -> None:
    _, writer = await asyncio.open_connection(*tight.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
    await tight.until(lambda: tight.router.dispatcher.num_inflight == 1)
    writer.close()
    await writer.wait_closed()
    await tight.until_idle()
    assert not tight.workers["decode-0"].engine.calls


async def test_client_that_does_not_read_stops_the_worker(pair: Site) -> None:
    """The engine is aborted after a bounded number of bytes; the client learns it when it reads on."""
    made_bytes = 0
    aborted = asyncio.Event()

    async def flood(call: HttpCall, sink: ReplySink) -> None:
        nonlocal made_bytes
        sink.start(200, (("content-type", "text/event-stream"),))
        event = b"data: " + b"x" * 65528 + b"\n\n"
        try:
            while True:
                sink.body(event)
                made_bytes += len(event)
                await asyncio.sleep(0.001)
        finally:
            aborted.set()

    pair.workers["decode-0"].engine.script = flood
    reader, writer = await asyncio.open_connection(*pair.url.removeprefix("http://").split(":"), limit=65536)
    body = json.dumps(PROMPT | {"stream": True}).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    async with asyncio.timeout(30):
        await aborted.wait()
    assert made_bytes < 64 << 20
    tail = b""
    while not tail.endswith(b"0\r\n\r\n"):
        tail = tail[-2000:] + await reader.read(1 << 20)
    assert b'"type":"overloaded"' in tail
    writer.close()
    await writer.wait_closed()
    await pair.until_idle()
    assert await pair.metric("baton_requests_total", outcome="client_slow") == 1
    assert await pair.metric("baton_slo_missed_total") == 0


class Wire:
    """A connection that keeps what is written, and what stays unread of it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport = self  # type: ignore[assignment]
        self.written = b""
        self.is_closed = False
        self.num_complete = 0

    def default_headers(self) -> bytes:
        return b"date: now\r\n"

    def on_response_complete(self) -> None:
        self.num_complete += 1

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def close(self) -> None:
        self.is_closed = True


def on_wire(**settings: bool) -> tuple[Exchange, Wire]:
    wire = Wire()
    new = Exchange(wire, method="POST", path="/p", **settings)
    new.request_id = "r"
    return new, wire


async def test_client_that_left_before_its_body_was_read_is_not_served() -> None:
    request, _ = on_wire()
    request.take_body(b"{}")
    request.take_end()
    request.leave()
    with pytest.raises(ClientGone):
        await request.read_body(10)


async def test_client_that_leaves_is_told_once_and_only_before_the_end() -> None:
    for answered, times in ((False, 1), (True, 0)):
        request, wire = on_wire()
        told: list[bool] = []
        request.on_gone = lambda told=told: told.append(True)  # type: ignore[misc]
        if answered:
            request.respond(200, b"", b"x")
        written = wire.written
        request.leave()
        request.leave()
        request.finish(b"nobody reads this")
        assert (len(told), wire.written) == (times, written)


async def test_limit_holds_without_a_declared_length() -> None:
    request, _ = on_wire()
    request.take_body(b"x" * 11)
    with pytest.raises(PayloadTooLarge):
        await request.read_body(10)
    exact, _ = on_wire()
    for piece in (b"xxxxx", b"yyyyy"):
        exact.take_body(piece)
    exact.take_end()
    assert await exact.read_body(10) == b"xxxxxyyyyy"


def test_response_in_pieces_is_chunked() -> None:
    request, wire = on_wire()
    request.take_end()
    request.add_header(b"x-more", b"1")
    request.start(200, header_block([(b"content-type", b"text/event-stream")]))
    request.write(b"0123456789abcdef")
    request.finish(b"end")
    assert wire.written == (
        b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-type: text/event-stream\r\nx-more: 1\r\nx-request-id: r\r\n"
        b"transfer-encoding: chunked\r\n\r\n10\r\n0123456789abcdef\r\n3\r\nend\r\n0\r\n\r\n"
    )
    assert (wire.num_complete, wire.is_closed) == (1, False)


def test_response_is_closed_when_the_client_wants_it() -> None:
    request, wire = on_wire(keep_alive=False)
    request.take_end()
    request.respond(200, b"", b"x")
    assert b"connection: close\r\n" in wire.written
    assert wire.is_closed


@pytest.mark.parametrize("header", [(b"a", b"b\r\nc: d"), (b"a\n", b"b"), (b"a b", b"c"), (b"a", b"\x00")])
def test_header_that_would_be_two_is_refused(header: tuple[bytes, bytes]) -> None:
    with pytest.raises(BatonError, match="no header"):
        header_block([header])


def test_client_is_behind_beyond_the_limit() -> None:
    request, _ = on_wire()
    request.start(200, b"")
    assert not request.is_behind
    request.write(b"x" * exchange.MAX_UNREAD_BYTES)
    assert request.is_behind
