"""One connection of a client: uvicorn's, with bounds on what comes before a request, and errors in the one shape.

Owns the size and the time of a request's head, and the answer to what is no HTTP. Must not know routes or requests.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router.errors import error_json

HEAD_BYTES: Final = 64 << 10  # one read of the socket more at most
HEAD_S: Final = 60.0  # from the connection, or from the first byte of a further head
# Closing with bytes unread resets the connection, and the client may lose the answer: so long they are thrown away.
LINGER_S: Final = 2.0
_HEAD_END: Final = b"\r\n\r\n"
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class HttpProtocol(HttpToolsProtocol):
    """Cuts off whoever sends a head without end, which uvicorn would keep for ever."""

    _in_head = False
    _head_bytes = 0
    _refused = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the head it belongs to has become too long."""
        if self._refused:
            return
        if not self._in_head and self._is_between_requests:
            data = _without_upgrade(data)
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head of the request is too long")
                return
        if self._head_timer is None and (self._in_head or self._is_between_requests):
            self._wait_for_head()

    def on_message_begin(self) -> None:
        """Note where a head begins."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Note where it ends."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    @property
    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the head of the request took more than {HEAD_S:g} s")
        elif self._is_between_requests:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer with an error and close; just close when another answer is under way, which must not be mixed up."""
        self._refused = True
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if not self._is_between_requests:
            if self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                self.transport.close()
                return
            # The body of this request is what is wrong: whoever serves it sees its client leave.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = error_json(message, kind="invalid_request_error", code=status)
        head = (
            f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(LINGER_S, self.transport.close)


def _without_upgrade(data: bytes) -> bytes:
    """Take an offer to change the protocol out of a head, for the parser takes no body after one.

    Clients that offer HTTP/2 with every request (Java's does) are then served by HTTP/1.1, as RFC 9110, 7.8 has it.
    """
    head, end, rest = data.partition(_HEAD_END)
    return _UPGRADE.sub(b"", head) + end + rest if b"pgrade" in head else data
