"""What is no proper request: answered in the one shape of errors, or cut off, and never kept for ever."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from router import http_protocol
from tests.support.router_site import MODEL, Site

WAIT_S = 10.0
BODY = json.dumps({"model": MODEL, "prompt": "the sea", "max_tokens": 2}).encode()
POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_S", 0.2)


async def converse(site: Site, *sent: bytes) -> bytes:
    """Send everything and read until the router closes the connection."""
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for data in sent:
            writer.write(data)
        async with asyncio.timeout(WAIT_S):
            return await reader.read()
    finally:
        writer.close()


def parse(reply: bytes) -> tuple[int, dict[str, object]]:
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"content-type: application/json\r\n" in head + b"\r\n"
    assert b"connection: close" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01 this is no HTTP\r\n\r\n",
        b"BREW /coffee HTTP/1.1\r\nhost: x\r\n\r\n",
        POST + b"content-length: many\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_http_is_refused_in_the_one_shape(site: Site, request_bytes: bytes) -> None:
    status, error = parse(await converse(site, request_bytes))
    assert (status, error["code"], error["type"]) == (400, 400, "invalid_request_error")


async def test_nothing_is_written_into_a_response_under_way(pair: Site) -> None:
    stream = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 4000, "stream": True}).encode()
    asked = POST + b"content-length: %d\r\n\r\n" % len(stream) + stream
    reply = await converse(pair, asked + b"\x00garbage\r\n\r\n")
    assert b"error" not in reply
    await pair.until_idle()


@pytest.mark.parametrize("lines", [b"x: y\r\n" * 100_000, b"x: " + b"y" * 2_000_000], ids=["many", "one"])
async def test_a_head_that_is_too_long_is_refused(site: Site, lines: bytes) -> None:
    status, error = parse(await converse(site, POST, lines))
    assert (status, error["code"]) == (431, 431)


async def test_a_head_that_never_ends_is_not_waited_for(site: Site, impatient: None) -> None:
    status, error = parse(await converse(site, POST + b"x: y\r\n"))
    assert (status, error["code"]) == (408, 408)


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
async def test_a_connection_that_asks_nothing_is_closed(site: Site, sent: bytes, impatient: None) -> None:
    assert await converse(site, sent) == b""


async def test_a_second_head_that_never_ends_is_not_waited_for(pair: Site, impatient: None) -> None:
    reply = await converse(pair, POST + LENGTH + b"\r\n" + BODY, POST)
    first, _, second = reply.partition(b"HTTP/1.1 408")
    assert first.startswith(b"HTTP/1.1 200")
    assert second


async def test_a_slow_body_is_not_cut_off_by_the_bound_of_heads(pair: Site, impatient: None) -> None:
    host, port = pair.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(POST + LENGTH + b"\r\n" + BODY[:10])
        await asyncio.sleep(0.5)  # longer than a head may take
        writer.write(BODY[10:])
        async with asyncio.timeout(WAIT_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()


async def test_an_offer_of_http2_is_ignored_and_the_request_served(pair: Site, client: httpx.AsyncClient) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    reply = await converse(pair, POST + LENGTH + offer + b"\r\n" + BODY)
    assert reply.startswith(b"HTTP/1.1 200")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 2
