"""One connection of a client: uvicorn's, with a short way for the routes that carry load, and bounds on every head.

Owns the size and the time of a request's head, the answer to what is no HTTP, and which requests never become ASGI:
those that its `Relay` takes are handed over as soon as their head is read. Must not know routes or requests.
"""

from __future__ import annotations

import asyncio
import re
import resource
import urllib.parse
from http import HTTPStatus
from typing import Any, Final, Protocol

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from router.errors import error_json
from router.exchange import Exchange, header_block
from router.known_head import KnownHead

HEAD_BYTES: Final = 64 << 10  # one read of the socket more at most
HEAD_S: Final = 60.0  # from the connection, or from the first byte of a further head
# Closing with bytes unread resets the connection, and the client may lose the answer: so long they are thrown away.
LINGER_S: Final = 2.0
SPARE_DESCRIPTORS: Final = 64  # at least so many are kept for workers, files and a burst of connections
_HEAD_END: Final = b"\r\n\r\n"
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class Relay(Protocol):
    """Who serves requests without ASGI."""

    def path_of(self, method: str, path: str) -> str | None:
        """Tell under which path a request is relayed; None: ASGI serves it."""
        ...

    def serve(self, exchange: Exchange, path: str) -> None:
        """Begin to serve a request whose head has arrived; `path` is the client's."""
        ...


class WaitingRoom:
    """All and only the connections from which no whole request has come since the last answer, longest wait first.

    When descriptors run out they go, so that whoever holds connections open without asking shuts nobody out.
    """

    def __init__(self) -> None:
        self._waiting: dict[HttpProtocol, None] = {}

    def __len__(self) -> int:
        """Count the connections that wait."""
        return len(self._waiting)

    def enter(self, connection: HttpProtocol) -> None:
        """Let a connection wait, behind all others."""
        self._waiting[connection] = None

    def leave(self, connection: HttpProtocol) -> None:
        """Note that a connection does not wait any more."""
        self._waiting.pop(connection, None)

    def make_room(self, num_connections: int) -> None:
        """Close the longest waiting connection if all of them have used up their share of the descriptors."""
        limit = descriptor_limit()
        if self._waiting and num_connections > limit - max(SPARE_DESCRIPTORS, limit // 8):
            oldest = next(iter(self._waiting))
            self.leave(oldest)
            oldest.transport.close()


def descriptor_limit() -> int:
    """Tell how many descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class HttpProtocol(HttpToolsProtocol):
    """Cuts off whoever sends a head without end, which uvicorn would keep for ever."""

    _in_head = False
    _head_bytes = 0
    _refused = False
    _head_timer: asyncio.TimerHandle | None = None
    _idle_since_s = 0.0

    def __init__(
        self,
        relay: Relay,
        waiting_room: WaitingRoom,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._relay = relay
        self._waiting_room = waiting_room
        self._newest: Exchange | None = None  # whose body comes, if it is relayed
        self._running: Exchange | None = None  # whose response is under way, or was the last to be
        self._default_list: list[tuple[bytes, bytes]] = []  # that `_default_block` was made of
        self._default_block = b""
        self._waiting: dict[Exchange, str] = {}  # all and only the relayed requests in the pipeline, and their paths
        self._known_head: KnownHead | None = None  # of the latest relayed request
        self._is_in_message = False  # the parser is

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()
        self._waiting_room.enter(self)
        self._waiting_room.make_room(len(self.connections))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all waiting."""
        self._stop_waiting()
        self._waiting_room.leave(self)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        super().connection_lost(exc)
        if self._running is not None:
            self._running.leave()
        # Nothing of a closed connection is left to the garbage collector.
        self.cycle = self._running = self._newest = None  # type: ignore[assignment]
        self._waiting.clear()
        self.pipeline.clear()

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the head it belongs to has become too long."""
        if self._refused:
            return
        begins = not self._is_in_message and self._is_between_requests
        if begins:
            if self._known_head is not None and self._take_known(self._known_head, data):
                return
            if data.find(b"pgrade", 0, data.find(_HEAD_END)) >= 0:
                data = _without_upgrade(data)
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        if begins and self._newest is not None and self._newest is self._running:
            self._know_head(self._newest, data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head of the request is too long")
                return
            if self._head_timer is None:
                self._wait_for_head()

    def default_headers(self) -> bytes:
        """Write the headers of every response; see router.exchange.Connection."""
        newest = self.server_state.default_headers  # replaced once a second
        if newest is not self._default_list:
            self._default_list, self._default_block = newest, header_block(newest)
        return self._default_block

    # -- what the parser tells -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Note where a head begins; what ASGI needs is made only if it comes to that."""
        self._in_head = self._is_in_message = True
        self._head_bytes = 0
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        """Note where it ends, and hand the request to whoever serves it."""
        self._in_head = False
        self._stop_waiting()
        method = self.parser.get_method().decode("ascii")
        path, query = self._target()
        served_as = self._relay.path_of(method, path)
        if served_as is None:
            self._newest = None
            self._begin_asgi()
            return
        version = self.parser.get_http_version()
        exchange = self._newest = Exchange(
            self,
            method=method,
            path=f"{served_as}?{query}" if query else served_as,
            headers=self.headers,
            keep_alive=self.parser.should_keep_alive(),
            is_http_1_0=version == "1.0",
            expects_continue=self.expect_100_continue,
        )
        before, self.cycle = self.cycle, exchange  # type: ignore[assignment]
        if before is None or before.response_complete:
            self._running = exchange
            self._relay.serve(exchange, path)
        else:
            self.flow.pause_reading()
            self._waiting[exchange] = path
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on."""
        if self._newest is None:
            super().on_body(body)
        elif not self._newest.response_complete:
            self._newest.take_body(body)

    def on_message_complete(self) -> None:
        """Pass the end of the body on."""
        self._is_in_message = False
        if not self.cycle.response_complete:  # else the answer did not wait for the body
            self._waiting_room.leave(self)
        if self._newest is None:
            super().on_message_complete()
        else:
            self._newest.take_end()

    def _take_known(self, head: KnownHead, data: bytes) -> bool:
        """Serve a whole request whose head is known, without the parser; False: it is something else."""
        found = head.whole(data)
        if found is None or self.transport.is_closing():
            return False
        self._stop_waiting()
        self._waiting_room.leave(self)
        exchange = Exchange(self, method=head.method, path=head.served_as, headers=head.headers)
        exchange.headers[b"content-length"] = found.length
        exchange.take_body(found.body)
        exchange.take_end()
        self._newest = self._running = self.cycle = exchange  # type: ignore[assignment]
        self._relay.serve(exchange, head.path)
        return True

    def _know_head(self, exchange: Exchange, data: bytes) -> None:
        """Keep the head of a request that the parser has just told of, if the connection goes on after it."""
        self._known_head = None
        if exchange.keep_alive:
            path = self._target()[0]
            served_as, method = exchange.path, exchange.method
            self._known_head = KnownHead.of(data, self.headers, method=method, path=path, served_as=served_as)

    def _target(self) -> tuple[str, str]:
        """Split what was asked for into path and query."""
        url = self.url
        if url[:1] != b"/" or b"#" in url:
            parsed = httptools.parse_url(url)
            raw, query = parsed.path or b"", parsed.query or b""
        else:
            raw, _, query = url.partition(b"?")
        path = raw.decode("latin-1")
        return urllib.parse.unquote(path) if "%" in path else path, query.decode("latin-1")

    def _begin_asgi(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()

    # -- between requests ----------------------------------------------------------------------------------------------

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Begin the request that is next, which may be one that is relayed."""
        if isinstance(cycle, Exchange):
            self._running = cycle
            self._relay.serve(cycle, self._waiting.pop(cycle))
        else:
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Begin the next request, or wait for it: one timer for many waits, which moves its end as it finds it."""
        self._idle_since_s = self.loop.time()
        if not self.pipeline and not self.transport.is_closing():
            self._waiting_room.enter(self)
        if self.timeout_keep_alive_task is None or self.pipeline:
            super().on_response_complete()
        else:
            self.server_state.total_requests += 1
            if not self.transport.is_closing():
                self.flow.resume_reading()

    def _unset_keepalive_if_required(self) -> None:
        """Leave the timer alone: it looks for itself whether the connection is idle."""

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for long enough."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing() or not self._is_between_requests or self._in_head:
            return  # the end of that request sets the timer again; heads have their own
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s <= 0:
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)

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
            if self._running is not None:
                self._running.leave()
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
    return _UPGRADE.sub(b"", head) + end + rest
