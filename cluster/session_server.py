"""The worker's end of the session: serves one core.worker.Worker to any number of routers at one port.

Owns the listening socket, who is admitted, and the set of sessions; what happens in one is cluster.served_session's.
Must not know what a leg does, nor anything of membership or Ray.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import Final

from cluster import wire
from cluster.connection import HANDSHAKE_S, Connection
from cluster.served_session import ServedSession
from core.errors import StartFailed
from core.handshake import WorkerHandshake
from core.worker import Worker

_LOG = logging.getLogger(__name__)

DEFAULT_MAX_UNSENT_BYTES: Final = 64 << 20
MAX_STRANGERS: Final = 256  # connections that have not shown the token; the oldest goes when there are more
_FLUSH_S: Final = 1.0  # for the last frames of a server that stops


class SessionServer:
    """Serves one worker; several routers may hold a session each."""

    def __init__(
        self,
        worker: Worker,
        *,
        host: str,
        port: int = 0,
        token: str = "",
        tls: ssl.SSLContext | None = None,
        max_body_bytes: int = wire.DEFAULT_MAX_BODY_BYTES,
        max_unsent_bytes: int = DEFAULT_MAX_UNSENT_BYTES,
    ) -> None:
        self._worker = worker
        self._host = host
        self._port = port
        self._token = token
        self._tls = tls
        self._max_body_bytes = max_body_bytes
        self._max_unsent_bytes = max_unsent_bytes
        self._sessions: set[ServedSession] = set()  # all and only the sessions that run
        self._strangers: dict[Connection, None] = {}  # connections whose router is not known yet, oldest first
        self._tasks: set[asyncio.Task[None]] = set()  # all and only those of sessions that run
        self._server: asyncio.Server | None = None
        self._stopping = False

    @property
    def num_sessions(self) -> int:
        """Sessions that are open."""
        return len(self._sessions)

    @property
    def num_calls(self) -> int:
        """Calls whose task is not done, over all sessions."""
        return sum(len(session.call_tasks()) for session in self._sessions)

    @property
    def frames_sent(self) -> int:
        """Frames written to the sessions that are open."""
        return sum(session.frames_sent for session in self._sessions)

    async def start(self) -> int:
        """Bind and serve; return the bound port.

        Raises StartFailed when the address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        listener = await _bind(self._host, self._port)
        self._server = await loop.create_server(
            self._new_connection,
            sock=listener,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else HANDSHAKE_S,
        )
        self._worker.on_step(self._on_step)
        return int(listener.getsockname()[1])

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those that run end within `grace_s`, then end every session; idempotent."""
        self._stopping = True
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in list(self._strangers):
            connection.abort()
        sessions = list(self._sessions)
        calls = [task for session in sessions for task in session.call_tasks()]
        if calls and grace_s > 0:
            await asyncio.wait(calls, timeout=grace_s)
        await asyncio.gather(*(session.flush(_FLUSH_S) for session in sessions))
        for session in sessions:
            session.end("")
        closed = asyncio.gather(*(session.wait_closed() for session in sessions))
        await asyncio.wait([closed], timeout=_FLUSH_S)
        for session in sessions:
            session.cut_off()  # those that did not read their last frames
        await closed

    def _new_connection(self) -> Connection:
        session = ServedSession(
            self._worker,
            max_unsent_bytes=self._max_unsent_bytes,
            accepts_calls=lambda: not self._stopping,
            on_open=self._admit,
        )
        connection = Connection(
            session,
            WorkerHandshake(self._token),
            max_message_bytes=self._max_body_bytes + wire.ENVELOPE_BYTES,
        )
        session.connection = connection
        self._strangers[connection] = None
        connection.closed.add_done_callback(lambda _: self._strangers.pop(connection, None))
        if len(self._strangers) > MAX_STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.abort()
        return connection

    def _admit(self, session: ServedSession) -> None:
        """Serve a router that has shown that it knows the token."""
        self._strangers.pop(session.connection, None)
        if self._stopping:
            session.cut_off()
            return
        self._sessions.add(session)
        task = asyncio.create_task(self._serve(session), name=f"session-{session.peer}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, session: ServedSession) -> None:
        peer = session.peer
        try:
            reason = await session.run()
        finally:
            self._sessions.discard(session)
            session.closed.set()
        if reason:
            _LOG.warning("session with %s ended: %s", peer, reason)

    def _on_step(self) -> None:
        for session in self._sessions:
            session.state_changed()


async def _bind(host: str, port: int) -> socket.socket:
    """Bind exactly one address. Raises StartFailed."""
    loop = asyncio.get_running_loop()
    listener: socket.socket | None = None
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        if listener is not None:
            listener.close()
        raise StartFailed(f"cannot listen on {host}:{port}: {exc.strerror}") from exc
    return listener
