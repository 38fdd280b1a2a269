"""What becomes of a worker's reply, in the pass of the loop in which it arrives: the answer goes to the client at once.

Owns the relaying of one try's answer and the watching of its prefill leg. Must not choose workers, count tries, or
answer errors. Nothing here waits: the session calls, and the client's transport takes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from cluster.reply import Headers as WorkerHeaders
from cluster.reply import OpenCall
from core.errors import BatonError, EngineFailed, Overloaded, ResumeFailed
from router.answer_headers import document_headers, start_headers, stream_comment
from router.errors import in_one_shape
from router.exchange import header_block
from router.life import Life
from router.observer import Observer

# Hop-by-hop (RFC 9110, 7.6.1), or set anew on this side.
_DROPPED: Final = frozenset(
    (
        "connection",
        "content-length",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    )
)
_JSON: Final = header_block([(b"content-type", b"application/json")])
_UNBUFFERED: Final = header_block([(b"x-accel-buffering", b"no")])


class Answer(OpenCall):
    """Relays the reply that answers the client: a stream as its bytes come, anything else whole.

    Of a stream that another worker began, only what the client does not have.
    """

    __slots__ = (
        *(
            "_check",
            "_done",
            "_error",
            "_exchange",
            "_headers",
            "_is_stream",
            "_life",
            "_observer",
            "_parts",
            "_status",
        ),
        "_transcript",
    )

    def __init__(self, life: Life, observer: Observer) -> None:
        super().__init__()
        self._life = life
        self._transcript = life.transcript
        # Until what was sent has been made again.
        self._check = life.transcript.check() if life.transcript is not None and life.exchange.sent else None
        self._exchange = life.exchange
        self._observer = observer
        self._status = 0
        self._headers: WorkerHeaders = ()
        self._is_stream = False
        self._parts: list[bytes] = []  # of a document: a worker lost in its middle must not be the client's concern
        self._error: Exception | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def out(self) -> None:
        """Wait until the answer is out. Raises why it is not; nothing more is sent then."""
        await self._done
        if self._error is not None:
            raise self._error

    def add_head(self, status: int, headers: WorkerHeaders) -> None:
        """Begin the client's response if this is a stream: early, so that the client sees that it is served."""
        self._status, self._headers = status, headers
        self._is_stream = _is_stream(headers)
        if self._is_stream and not self._exchange.response_started:
            self._guarded(self._start_stream)

    def add_tokens(self, token_ids: bytes, group_sizes: Sequence[int]) -> None:
        """Note what the next bytes are made of."""
        if self._transcript is not None:
            self._transcript.took(token_ids, group_sizes)

    def add_body(self, data: bytes) -> None:
        """Pass bytes on; give the call up when the client does not read."""
        if not self._is_stream:
            self._parts.append(data)
            return
        if self._check is not None and not (data := self._new(data)):
            return
        if self._exchange.is_behind:  # by what came before: one piece passes whatever its size
            self.abort()
            self._fail(Overloaded("the client reads too slowly: too much of its response is unread"))
            return
        now_s = time.monotonic()
        gap_s = self._life.chunk(data, now_s)
        if gap_s is not None:
            self._observer.metrics.gap(gap_s)
        else:
            self._observer.answering(self._life, now_s)
        if self._transcript is not None:
            self._transcript.sent(data)
        self._exchange.write(data)

    def end(self, error: BatonError | None) -> None:
        """End the client's response, or leave it to whoever knows what to do about the error."""
        self.ended = True
        if error is not None:
            self._fail(error)
        elif not self._status:
            self._fail(EngineFailed("the reply ended before it began"))
        elif self._check is not None and self._is_stream:
            self._fail(ResumeFailed("the worker that took the stream over made less of it than was sent"))
        elif self._is_stream:
            life = self._life
            self._exchange.finish(stream_comment(life.record, life.timing()) if life.is_explained else b"")
            self._finished()
        else:
            self._guarded(self._finish_document)

    def _new(self, data: bytes) -> bytes:
        """Leave out what the client has; give the call up when that differs from what was sent."""
        assert self._check is not None
        try:
            data = self._check.new(data)
        except ResumeFailed as exc:
            self.abort()
            self._fail(exc)
            return b""
        if self._check.is_done:
            self._check = None
            self._life.resumed(time.monotonic())
        return data

    def _start_stream(self) -> None:
        block = _response_block(self._headers) + _UNBUFFERED
        if self._life.is_explained:
            block += header_block(start_headers(self._life.record))
        self._life.status = self._status
        self._exchange.start(self._status, block)

    def _finish_document(self) -> None:
        status, parts = self._status, self._parts
        if self._exchange.response_started:  # a stream was promised by a worker that died before its first event
            raise EngineFailed(f"the worker that took the request over answered {status}")
        block = _response_block(self._headers)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if status >= HTTPStatus.BAD_REQUEST and (shaped := in_one_shape(status, body)) is not None:
            kept = tuple((name, value) for name, value in self._headers if name.lower() != "content-type")
            block, body = _response_block(kept) + _JSON, shaped
        life = self._life
        life.status = status
        life.whole_body(body, time.monotonic())
        if life.is_explained:
            life.record.measured(None, self.facts)
            block += header_block(document_headers(life.record, life.timing()))
        self._exchange.respond(status, block, body)
        self._finished()

    def _guarded(self, step: Callable[[], None]) -> None:
        """Take a step that may fail; the session that calls must not, for it carries other requests too."""
        try:
            step()
        except Exception as exc:
            self.abort()
            self._fail(exc)

    def _finished(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._finished()


class PrefillLeg(OpenCall):
    """Watches the other half of a pair, which no client waits for; who submitted it learns of its outcome at once."""

    __slots__ = ("_on_outcome", "_status")

    def __init__(self, on_outcome: Callable[[str, str, BatonError | None], None]) -> None:
        """`on_outcome` is called once with outcome, reason and error."""
        super().__init__()
        self._on_outcome = on_outcome
        self._status = 0

    def add_head(self, status: int, headers: WorkerHeaders) -> None:
        """Note how the leg was answered."""
        self._status = status

    def add_body(self, data: bytes) -> None:
        """Drop it: the by-product of prefill."""

    def end(self, error: BatonError | None) -> None:
        """Tell the outcome."""
        self.ended = True
        if error is not None:
            self._on_outcome(error.name, f"{error.name}: {error}", error)
        elif self._status == HTTPStatus.OK:
            self._on_outcome("ok", "", None)
        else:
            self._on_outcome("refused", f"the prefill leg was answered {self._status}", None)

    def abort(self) -> None:
        """Stop the leg, which is not needed any more."""
        if not self.ended:
            super().abort()
            self._on_outcome("cancelled", "", None)


@lru_cache(maxsize=256)
def _is_stream(headers: WorkerHeaders) -> bool:
    return any(n.lower() == "content-type" and v.startswith("text/event-stream") for n, v in headers)


@lru_cache(maxsize=256)
def _response_block(headers: WorkerHeaders) -> bytes:
    """Write what a client is sent of a worker's headers. Raises EngineFailed for what is no header."""
    try:
        return header_block(
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in headers
            if name.lower() not in _DROPPED
        )
    except (BatonError, UnicodeEncodeError) as exc:
        raise EngineFailed(f"the worker sent {exc}") from exc
