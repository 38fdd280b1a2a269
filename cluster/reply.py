"""The router's end of one call: what a session tells of it, and a reply that is kept until somebody reads it.

Owns the seam between a session and whoever wants the reply, the buffer, and the one reader that may wait on it. Must
not know the connection. On the router's hot path: no task, queue or lock per reply or token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from core.errors import BatonError, EngineFailed, Overloaded
from core.types import LegFacts

Headers = tuple[tuple[str, str], ...]


class OpenCall:
    """One call, fed by its session as frames arrive; subclasses say what becomes of the reply.

    The session calls `add_head` once, then `add_tokens` and `add_body`, then `end` once; all must return at once and
    must not raise.
    """

    __slots__ = ("_on_abort", "call_id", "context_tokens", "ended", "facts", "prompt_tokens", "tpot_s")

    def __init__(self) -> None:
        self.call_id = 0  # given by the session, as are the fields below
        self.prompt_tokens = 0  # that the worker still owes the prefill of
        self.context_tokens = 0  # of the prompt, held by the worker while it makes the output
        self.tpot_s: float | None = None  # the output's target, if there is one that others must leave room for
        self.facts: LegFacts | None = None  # what the worker measured; known once the reply has ended
        self.ended = False  # nothing more will arrive
        self._on_abort: Callable[[OpenCall], None] | None = None  # None: not submitted

    def submitted(self, call_id: int, on_abort: Callable[[OpenCall], None]) -> None:
        """Learn of the session that carries the call."""
        self.call_id = call_id
        self._on_abort = on_abort

    def add_head(self, status: int, headers: Headers) -> None:
        """Take status and headers."""
        raise NotImplementedError

    def add_tokens(self, token_ids: bytes, group_sizes: Sequence[int]) -> None:
        """Take the tokens that the next bytes are made of, as cluster.codec encodes them; see core.engine.Resume."""

    def add_body(self, data: bytes) -> None:
        """Take the next bytes of the body; never empty."""
        raise NotImplementedError

    def end(self, error: BatonError | None) -> None:
        """Take the end of the reply, or the error that cut it short (WorkerLost when the session died)."""
        raise NotImplementedError

    def abort(self) -> None:
        """Stop the call on the worker and hear no more of it; nothing happens if the reply has ended."""
        if not self.ended:
            self.ended = True
            if self._on_abort is not None:
                self._on_abort(self)


class Reply(OpenCall):
    """One reply, read by one coroutine at a time; made by WorkerSession.submit and fed by its session."""

    __slots__ = ("_error", "_headers", "_max_unread_bytes", "_parts", "_status", "_unread_bytes", "_waiter")

    def __init__(self, *, max_unread_bytes: int) -> None:
        super().__init__()
        self._max_unread_bytes = max_unread_bytes
        self._status = 0
        self._headers: Headers = ()
        self._parts: list[bytes] = []
        self._unread_bytes = 0
        self._error: BatonError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def head(self) -> tuple[int, Headers]:
        """Wait for status and headers.

        Raises the error the call failed with (any of core.errors; WorkerLost when the stream died).
        """
        while not self._status:
            if self.ended:
                raise self._error if self._error is not None else EngineFailed("the reply ended before it began")
            await self._arrival()
        return self._status, self._headers

    async def read(self) -> bytes:
        """Return all bytes that have arrived; wait if there are none; b"" means that the reply is complete.

        Raises the error the call failed with, after the bytes that came before it.
        """
        while not self._parts:
            if self.ended:
                if self._error is not None:
                    raise self._error
                return b""
            await self._arrival()
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._unread_bytes = 0
        return data

    def abort(self) -> None:
        """Stop the call on the worker and drop what is unread; nothing happens if the reply has ended."""
        self._cut_off(BatonError("the call was aborted here"))

    def add_head(self, status: int, headers: Headers) -> None:
        """Take status and headers from the stream."""
        self._status = status
        self._headers = headers
        self._wake()

    def add_body(self, data: bytes) -> None:
        """Take bytes from the stream; abort the call when its reader lags by more than the limit.

        One piece is taken whatever its size, since it is in memory already: a limit of 4 MiB does not fail a unary
        reply of 20 MiB.
        """
        if self._unread_bytes > self._max_unread_bytes:
            self._cut_off(Overloaded(f"the reply's reader is {self._unread_bytes} bytes behind"))
            return
        self._parts.append(data)
        self._unread_bytes += len(data)
        self._wake()

    def end(self, error: BatonError | None) -> None:
        """Take the end of the reply, or the error that cut it short."""
        if not self.ended:
            self.ended = True
            self._error = error
            self._wake()

    async def _arrival(self) -> None:
        assert self._waiter is None, "a reply has one reader"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _cut_off(self, error: BatonError) -> None:
        if not self.ended:
            super().abort()
            self._parts.clear()
            self._unread_bytes = 0
            self._error = error
            self._wake()
