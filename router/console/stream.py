"""A response that never ends by itself: server-sent events, as they come.

Owns the bounds of such a response: a client that leaves ends it at once, one that does not read within SEND_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SEND_S: Final = 15.0


class EventStream(Response):
    """Sends what a generator yields, and closes the generator however it ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: dict[str, str], *, send_s: float = SEND_S) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._events = events
        self._send_s = send_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events end, the client leaves, or it does not read."""
        sending = asyncio.create_task(self._send(send), name="console-events")
        leaving = asyncio.create_task(_until_gone(receive), name="console-gone")
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            done = await asyncio.gather(sending, leaving, return_exceptions=True)
        for found in done:
            if isinstance(found, Exception) and not isinstance(found, (TimeoutError, OSError)):
                raise found

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in events:
                async with asyncio.timeout(self._send_s):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
