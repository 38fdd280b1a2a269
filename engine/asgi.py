"""Calls an ASGI application in this process, without a server.

Owns the translation between HttpCall/ReplySink and ASGI. Must not know what the application does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

from core.engine import HttpCall, ReplySink
from core.errors import EngineFailed

logger = logging.getLogger(__name__)

# Names as in the ASGI specification 3.0; its messages are open dictionaries.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]

# A cancelled call may take this long to give up its request before its task is cancelled too.
DISCONNECT_WAIT_S = 5.0
CANCEL_WAIT_S = 1.0
# The body is replaced by bytes in memory, so its framing is ours to state; the id is the caller's.
_OWN_HEADERS = frozenset({b"content-length", b"transfer-encoding", b"connection", b"x-request-id"})


class _Conversation:
    """One request and its reply, as the application sees them."""

    __slots__ = ("_body", "_sink", "complete", "disconnected", "started")

    def __init__(self, call: HttpCall, sink: ReplySink) -> None:
        self._body: bytes | None = call.body
        self._sink = sink
        self.started = False
        self.complete = False
        self.disconnected = asyncio.Event()

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.disconnected.is_set() or self.complete:
            return
        if message["type"] == "http.response.body":
            if data := message.get("body"):
                self._sink.body(data)
            self.complete = not message.get("more_body", False)
        elif message["type"] == "http.response.start":
            self.started = True
            headers = tuple((n.decode("latin-1"), v.decode("latin-1")) for n, v in message.get("headers", ()))
            self._sink.start(message["status"], headers)


async def call_asgi(app: AsgiApp, call: HttpCall, sink: ReplySink) -> None:
    """Run one call through `app` into `sink`; return when the reply is complete.

    When cancelled, the application sees the client disconnect and gets a bounded time to end before this returns.
    Raises EngineFailed when the application ends without a complete reply.
    """
    conversation = _Conversation(call, sink)
    run = app(_scope(call), conversation.receive, conversation.send)
    task = asyncio.ensure_future(run)
    if isinstance(task, asyncio.Task):
        task.set_name(f"asgi {call.request_id}")
    try:
        await asyncio.wait((task,))
    except asyncio.CancelledError:
        await _disconnect(task, conversation)
        raise
    error = task.exception() if not task.cancelled() else asyncio.CancelledError()
    if conversation.complete:
        if error is not None:
            logger.error("request %s: failed after its reply", call.request_id, exc_info=error)
        return
    raise EngineFailed(f"the engine's HTTP layer gave no complete reply to {call.path}") from error


async def _disconnect(task: asyncio.Future[None], conversation: _Conversation) -> None:
    """Tell the application that the client is gone, and see it end; at the latest by cancelling it."""
    conversation.disconnected.set()
    try:
        await asyncio.wait((task,), timeout=DISCONNECT_WAIT_S)
    finally:
        if not task.done():
            task.cancel()
    if not task.done():
        await asyncio.wait((task,), timeout=CANCEL_WAIT_S)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        logger.debug("ended by disconnect", exc_info=error)


def _scope(call: HttpCall) -> Message:
    path, _, query = call.path.partition("?")
    headers = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in call.headers]
    headers = [(n, v) for n, v in headers if n not in _OWN_HEADERS]
    headers.append((b"x-request-id", call.request_id.encode("latin-1", "replace")))
    if call.body or call.method not in ("GET", "HEAD"):
        headers.append((b"content-length", str(len(call.body)).encode()))
    return {
        "type": "http",
        # From version 2.4 on, streamed replies no longer listen for the disconnect message.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method.upper(),
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("latin-1", "replace"),
        "query_string": query.encode("latin-1", "replace"),
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "state": {},
    }
