"""OpenAI servers of a few lines, in the test's own loop, for tests of clients over real sockets."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

MODEL = "mock"


@dataclass
class Heard:
    """One request that a mock was sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Respond = Callable[["Heard", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Mock:
    """A server that runs, and what it heard."""

    url: str
    heard: list[Heard] = field(default_factory=list)

    def generations(self) -> list[Heard]:
        """The requests for tokens."""
        return [h for h in self.heard if h.path.endswith("completions")]


def document(body: dict[str, Any], status: int = 200, **headers: str) -> bytes:
    """Write an answer that is whole."""
    data = json.dumps(body).encode()
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n{more}\r\n".encode() + data


def token_event(text: str = " x", **more: Any) -> bytes:
    """Write the event of one token."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None}
    body = {"id": "c", "object": "text_completion", "model": MODEL, "choices": [choice | more]}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def usage_event(prompt_tokens: int, completion_tokens: int) -> bytes:
    """Write the event of usage."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return b"data: " + json.dumps({"choices": [], "usage": usage}, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Frame a chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def words_in(body: dict[str, Any]) -> int:
    """Count the words of a prompt: a token each, here."""
    prompt = body.get("prompt")
    if prompt is None:
        prompt = " ".join(str(m["content"]) for m in body["messages"])
    return len(str(prompt).split())


async def stream_tokens(heard: Heard, writer: asyncio.StreamWriter) -> None:
    """Answer as a fast engine does: all tokens, an event each, then usage."""
    tokens = heard.body.get("max_tokens") or heard.body.get("max_completion_tokens") or 1
    if not heard.body.get("stream"):
        usage = {"prompt_tokens": words_in(heard.body), "completion_tokens": tokens}
        writer.write(document({"choices": [{"text": " x" * tokens}], "usage": usage}))
        return
    writer.write(STREAM_HEAD)
    for _ in range(tokens):
        writer.write(chunk(token_event()))
    writer.write(chunk(usage_event(words_in(heard.body), tokens) + DONE) + b"0\r\n\r\n")


@asynccontextmanager
async def mock_server(respond: Respond = stream_tokens, tls: ssl.SSLContext | None = None) -> AsyncIterator[Mock]:
    """Serve until the block ends; `respond` answers what asks for tokens."""
    mock = Mock("")
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while True:
                heard = await _read(reader)
                mock.heard.append(heard)
                if heard.path.endswith("completions"):
                    await respond(heard, writer)
                else:
                    writer.write(_other(heard))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    mock.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield mock
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tuple(tasks), return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Heard:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    data = await reader.readexactly(int(headers.get("content-length", "0")))
    return Heard(method, path, headers, json.loads(data) if data else {})


def _other(heard: Heard) -> bytes:
    if heard.path == "/v1/models":
        return document({"data": [{"id": MODEL, "max_model_len": 4096}]})
    return document({"error": {"message": "Not Found"}}, 404)


@contextmanager
def served_in_thread(respond: Respond = stream_tokens) -> Iterator[Mock]:
    """Serve from a thread, for what has a loop of its own."""
    ready = threading.Event()
    stop = asyncio.Event()
    found: list[Mock] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with mock_server(respond) as mock:
            found.append(mock)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
