"""A response without end: it ends with its events, with its client, or when nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from router.console.stream import EventStream

WAIT_S = 20.0


class Client:
    """One end of an ASGI call."""

    def __init__(self, *, reads: bool = True) -> None:
        self.sent: list[Any] = []
        self.gone = asyncio.Event()
        self._reads = reads

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if not self._reads and message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def call(self, response: EventStream) -> None:
        async with asyncio.timeout(WAIT_S):
            await response({"type": "http"}, self.receive, self.send)


class Events:
    """Yields events until it is closed, and remembers that it was."""

    def __init__(self, last: int | None = None) -> None:
        self.is_closed = False
        self.asked = asyncio.Event()
        self._last = last

    async def stream(self) -> AsyncGenerator[bytes, None]:
        try:
            for number in range(self._last or 3):
                yield b"%d" % number
            self.asked.set()
            if self._last is None:
                await asyncio.Event().wait()
        finally:
            self.is_closed = True


async def test_all_events_are_sent_and_the_response_ends() -> None:
    client, events = Client(), Events(last=2)
    await client.call(EventStream(events.stream(), {"x-test": "1"}))
    start, *bodies = client.sent
    headers = dict(start["headers"])
    assert (start["status"], headers[b"content-type"], headers[b"x-test"]) == (
        200,
        b"text/event-stream; charset=utf-8",
        b"1",
    )
    assert b"content-length" not in headers
    assert [(b["body"], b["more_body"]) for b in bodies] == [(b"0", True), (b"1", True), (b"", False)]
    assert events.is_closed


async def test_a_client_that_leaves_ends_it() -> None:
    client, events = Client(), Events()
    call = asyncio.create_task(client.call(EventStream(events.stream(), {})))
    await events.asked.wait()
    client.gone.set()
    await call
    assert events.is_closed


async def test_a_client_that_does_not_read_loses_it() -> None:
    client, events = Client(reads=False), Events()
    await client.call(EventStream(events.stream(), {}, send_s=0.01))
    assert events.is_closed


async def test_an_error_of_the_events_is_raised() -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"1"
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await Client().call(EventStream(broken(), {}))
