"""ASGI applications called in process behave as behind a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from core.engine import HttpCall
from core.errors import EngineFailed
from core.types import LegFacts
from engine import asgi
from engine.asgi import AsgiApp, call_asgi

Endpoint = Callable[[Request], Awaitable[Response]]


class Recorder:
    """A sink that keeps the reply and tells when its first body arrives."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.first = asyncio.Event()

    def start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        assert not self.status
        self.status = status
        self.headers = dict(headers)

    def body(self, data: bytes) -> None:
        assert self.status
        assert data
        self.parts.append(data)
        self.first.set()

    def facts(self, facts: LegFacts) -> None:
        self.measured = facts

    def tokens(self, token_ids: Sequence[int]) -> None:
        pass


def app_of(endpoint: Endpoint) -> AsgiApp:
    return Starlette(routes=[Route("/{rest:path}", endpoint, methods=["GET", "POST"])])


def call(path: str = "/x", *, method: str = "POST", body: bytes = b"in", **headers: str) -> HttpCall:
    return HttpCall("req-7", method, path, tuple(headers.items()), body)


async def test_a_request_arrives_whole() -> None:
    async def echo(request: Request) -> Response:
        body = (await request.body()).decode()
        return JSONResponse([request.method, request.url.path, dict(request.query_params), dict(request.headers), body])

    sink = Recorder()
    given = call("/a%20b?q=1&r=%C3%A4", Accept="x/y", **{"content-length": "999", "x-request-id": "forged"})
    await call_asgi(app_of(echo), given, sink)
    assert sink.status == 200
    assert sink.headers["content-type"] == "application/json"
    expected = '["POST","/a b",{"q":"1","r":"ä"},{"accept":"x/y","x-request-id":"req-7","content-length":"2"},"in"]'
    assert b"".join(sink.parts).decode() == expected


async def test_streamed_parts_arrive_one_by_one() -> None:
    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        await go_on.wait()
        yield b""
        yield b"two"

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts())

    sink = Recorder()
    task = asyncio.create_task(call_asgi(app_of(stream), call(), sink))
    await sink.first.wait()
    assert sink.parts == [b"one"]
    go_on.set()
    await task
    assert sink.parts == [b"one", b"two"]


async def test_an_empty_reply_has_no_body() -> None:
    async def nothing(request: Request) -> Response:
        return Response(status_code=204)

    sink = Recorder()
    await call_asgi(app_of(nothing), call(method="GET", body=b""), sink)
    assert (sink.status, sink.parts) == (204, [])


async def test_cancelling_a_stream_ends_its_generator_first() -> None:
    ended = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts())

    sink = Recorder()
    task = asyncio.create_task(call_asgi(app_of(stream), call(), sink))
    await sink.first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_cancelling_a_waiting_handler_delivers_the_disconnect() -> None:
    waiting = asyncio.Event()
    seen: list[str] = []

    async def wait_for_disconnect(request: Request) -> Response:
        await request.body()
        waiting.set()
        seen.append((await request.receive())["type"])
        return PlainTextResponse("too late")

    sink = Recorder()
    task = asyncio.create_task(call_asgi(app_of(wait_for_disconnect), call(), sink))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["http.disconnect"]
    assert sink.status == 0


async def test_a_handler_deaf_to_the_disconnect_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "DISCONNECT_WAIT_S", 0.05)
    waiting = asyncio.Event()
    cancelled = asyncio.Event()

    async def deaf(request: Request) -> Response:
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Response()

    task = asyncio.create_task(call_asgi(app_of(deaf), call(), Recorder()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()


async def test_a_failure_before_the_reply_is_an_ordinary_500() -> None:
    async def broken(request: Request) -> Response:
        raise ValueError("oops")

    sink = Recorder()
    await call_asgi(app_of(broken), call(), sink)
    assert (sink.status, sink.parts) == (500, [b"Internal Server Error"])


async def test_a_failure_within_the_reply_is_an_engine_failure() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        raise ValueError("oops")

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts())

    sink = Recorder()
    with pytest.raises(EngineFailed) as caught:
        await call_asgi(app_of(stream), call(), sink)
    assert sink.parts == [b"one"]
    assert caught.value.__cause__ is not None


async def test_an_application_that_says_nothing_has_failed() -> None:
    async def silent(scope: asgi.Message, receive: asgi.Receive, send: asgi.Send) -> None:
        return None

    with pytest.raises(EngineFailed):
        await call_asgi(silent, call(), Recorder())
