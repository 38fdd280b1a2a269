"""What is no proper request: answered in the one shape of errors, or cut off, and never kept for ever."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from router import http_protocol
from router.exchange import Exchange
from router.http_protocol import HttpProtocol, WaitingRoom
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


def asked(body: bytes, *headers: bytes, version: bytes = b"1.1", path: bytes = b"/v1/completions") -> bytes:
    lines = [b"POST %b HTTP/%b" % (path, version), b"host: x", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def completion(max_tokens: int, *, stream: bool = False) -> bytes:
    return json.dumps({"model": MODEL, "prompt": "the sea", "max_tokens": max_tokens, "stream": stream}).encode()


async def test_pipelined_requests_are_answered_in_order(pair: Site) -> None:
    """Of four requests sent at once, relayed and not, the slowest first."""
    reply = await converse(
        pair,
        asked(completion(40, stream=True))
        + asked(completion(1))
        + b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"
        + asked(completion(2), b"connection: close"),
    )
    stream, _, rest = reply.partition(b"0\r\n\r\n")
    assert stream.count(b"data: ") == 41
    answers = rest.split(b"HTTP/1.1 200 OK\r\n")[1:]
    bodies = [json.loads(each.partition(b"\r\n\r\n")[2]) for each in answers]
    assert [body.get("usage", {}).get("completion_tokens") for body in bodies] == [1, None, 2]
    assert bodies[1] == {"status": "ok"}
    await pair.until_idle()


async def test_a_head_that_is_known_is_answered_as_before(pair: Site) -> None:
    """Whole, in pieces, two at once: what a connection knows of its requests changes no answer."""
    host, port = pair.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    pieces = [[asked(completion(n))] for n in (1, 12, 3)]
    pieces += [[asked(completion(4))[:30], asked(completion(4))[30:]], [asked(completion(5)) + asked(completion(6))]]
    pieces += [[asked(completion(7), path=b"/v1/models")], [asked(b"{")], [asked(completion(8))]]
    found: list[object] = []
    try:
        async with asyncio.timeout(WAIT_S):
            for sent in pieces:
                for piece in sent:
                    writer.write(piece)
                    await asyncio.sleep(0)
                for _ in range(2 if sent == pieces[4] else 1):
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                    body = json.loads(await reader.readexactly(length))
                    found.append(body.get("usage", {}).get("completion_tokens") or int(head.split()[1]))
    finally:
        writer.close()
    assert found == [1, 12, 3, 4, 5, 6, 405, 400, 8]


class Answering:
    """A relay that answers each request as soon as its head is read."""

    def __init__(self) -> None:
        self.served: list[str] = []

    def path_of(self, method: str, path: str) -> str | None:
        return path

    def serve(self, exchange: Exchange, path: str) -> None:
        self.served.append(path)
        exchange.respond(200, b"", b"done")


class Wire(asyncio.Transport):
    """A client that takes everything."""

    def write(self, data: object) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass


async def test_the_rest_of_a_body_is_no_request() -> None:
    """A request is answered before its body is here; what the body holds looks like a request that is known."""
    config = uvicorn.Config(lambda scope: None, log_config=None, ws="none")
    config.load()
    relay = Answering()
    connection = HttpProtocol(relay, WaitingRoom(), config, ServerState(), {})
    connection.connection_made(Wire())
    inner = asked(b"{}", path=b"/a")
    whole = asked(bytes(10) + inner, path=b"/a")  # so the head that is known is that of `inner`, too
    for data in (inner, inner, whole[: -len(inner)], inner, asked(b"{}", path=b"/c"), asked(b"{...}", path=b"/c")):
        connection.data_received(data)
    connection.connection_lost(ConnectionResetError())
    assert relay.served == ["/a", "/a", "/a", "/c", "/c"]


async def test_client_that_leaves_with_requests_in_the_pipeline_ends_the_one_that_runs(pair: Site) -> None:
    host, port = pair.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(asked(completion(4000, stream=True)) + asked(completion(4000)))
    await pair.until(lambda: pair.workers["decode-0"].role.state().num_running == 1)
    writer.close()
    await pair.until_idle()
    assert len(pair.workers["decode-0"].engine.calls) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_clients_of_http_1_0_get_what_they_understand(pair: Site, stream: bool) -> None:
    reply = await converse(pair, asked(completion(3, stream=stream), version=b"1.0"))
    head, _, body = reply.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"transfer-encoding" not in head
    if stream:
        assert body.endswith(b"data: [DONE]\n\n")
        assert body.count(b"data: ") == 4
    else:
        assert json.loads(body)["usage"]["completion_tokens"] == 3


async def test_body_is_asked_for_only_if_it_is_wanted(pair: Site) -> None:
    host, port = pair.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head, end, body = asked(completion(3), b"expect: 100-continue").partition(b"\r\n\r\n")
    async with asyncio.timeout(WAIT_S):
        writer.write(head + end)
        assert await reader.readuntil(end) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readuntil(end)).startswith(b"HTTP/1.1 200 ")
    writer.close()
    refused = await converse(pair, head + b"\r\nx-slo-class: gold" + end)
    assert refused.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nconnection: close\r\n" in refused  # whether the body comes, nobody knows


async def test_refusal_before_the_body_leaves_the_connection_in_order(pair: Site) -> None:
    refused = asked(completion(3), b"x-slo-class: gold")
    reply = await converse(pair, refused[:-10], refused[-10:], asked(completion(2), b"connection: close"))
    first, second = reply.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"400 ")
    assert second.startswith(b"200 ")


async def test_body_may_come_in_chunks_and_pieces(pair: Site) -> None:
    body = completion(3)
    head = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:5], body[5:])]
    sent = head + b"".join(chunks) + b"0\r\n\r\n"
    reply = await converse(pair, *[sent[i : i + 1] for i in range(len(sent))])
    assert reply.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "path", [b"/v1/completions?a=b", b"/v1%2Fcompletions", b"http://elsewhere:80/v1/completions?a=b"]
)
async def test_route_is_found_however_it_is_written(pair: Site, path: bytes) -> None:
    reply = await converse(pair, asked(completion(2), b"connection: close", path=path))
    assert reply.startswith(b"HTTP/1.1 200 ")
    (call,) = pair.workers["decode-0"].engine.calls
    assert call.path == ("/v1/completions?a=b" if b"?" in path else "/v1/completions")


async def test_idle_connection_is_closed_and_a_busy_one_is_not(pair: Site) -> None:
    host, port = pair.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    pair.router._http.config.timeout_keep_alive = 1
    writer.close()
    reader, writer = await asyncio.open_connection(host, int(port))
    began_s = asyncio.get_running_loop().time()
    async with asyncio.timeout(WAIT_S):
        writer.write(asked(completion(1)))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(asked(completion(1400, stream=True)))  # at a step of 1 ms, longer than the idle time
        reply = await reader.read()
    assert reply.endswith(b"0\r\n\r\n")
    assert asyncio.get_running_loop().time() - began_s > 2.0
    writer.close()


async def test_connections_that_ask_nothing_make_room_when_descriptors_run_out(
    pair: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait for longest go; requests under way stay, and newcomers are served."""
    host, port = pair.url.removeprefix("http://").split(":")
    busy_reader, busy = await asyncio.open_connection(host, int(port))
    busy.write(asked(completion(300, stream=True)))
    await busy_reader.readuntil(b"\r\n\r\n")
    connections = pair.router._http.server_state.connections
    monkeypatch.setattr(http_protocol, "descriptor_limit", lambda: 0 if len(connections) > 20 else 1 << 20)
    idle = []
    for number in range(40):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(POST if number % 2 else asked(completion(1))[:-5])  # half a head, or half a body
        idle.append((reader, writer))
        reply = await converse(pair, asked(completion(1), b"connection: close"))
        assert reply.startswith(b"HTTP/1.1 200 ")
    assert len(connections) <= 20
    async with asyncio.timeout(WAIT_S):
        assert await idle[0][0].read() == b""
        assert (await busy_reader.readuntil(b"0\r\n\r\n")).count(b"data: ") == 301
    for _, writer in (*idle, (busy_reader, busy)):
        writer.close()
    await pair.until_idle()
