"""The worker's end of the stream: serves one core.worker.Worker to any number of routers at one port.

Owns the gRPC server, the token check and the set of sessions; what happens in one is cluster.served_session's. Must
not know what a leg does, nor anything of membership or Ray.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import grpc
import grpc.aio

from cluster import channel
from cluster.pb import worker_pb2 as pb
from cluster.served_session import ServedSession
from core.cluster_token import token_presented
from core.worker import Worker

_LOG = logging.getLogger(__name__)

DEFAULT_MAX_UNSENT_BYTES: Final = 64 << 20
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
        max_body_bytes: int = channel.DEFAULT_MAX_BODY_BYTES,
        max_unsent_bytes: int = DEFAULT_MAX_UNSENT_BYTES,
    ) -> None:
        self._worker = worker
        self._address = f"{host}:{port}"
        self._token = token
        self._max_body_bytes = max_body_bytes
        self._max_unsent_bytes = max_unsent_bytes
        self._sessions: set[ServedSession] = set()  # all and only the sessions whose handler runs
        self._server: grpc.aio.Server | None = None
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
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve_session,
            request_deserializer=pb.Command.FromString,
            response_serializer=pb.Frame.SerializeToString,
        )
        self._server, port = await channel.start_server(
            self._address, channel.WORKER_SERVICE, {"Session": handler}, max_body_bytes=self._max_body_bytes
        )
        self._worker.on_step(self._on_step)
        return port

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those that run end within `grace_s`, then end every session; idempotent."""
        self._stopping = True
        server, self._server = self._server, None
        if server is None:
            return
        sessions = list(self._sessions)
        calls = [task for session in sessions for task in session.call_tasks()]
        if calls and grace_s > 0:
            await asyncio.wait(calls, timeout=grace_s)
        await asyncio.gather(*(session.flush(_FLUSH_S) for session in sessions))
        for session in sessions:
            session.end("")
        closed = asyncio.gather(*(session.closed.wait() for session in sessions))
        await asyncio.wait([closed], timeout=_FLUSH_S)
        await server.stop(None)  # cuts off those that did not end by themselves
        await closed

    async def _serve_session(self, _: object, context: grpc.aio.ServicerContext) -> None:
        if not token_presented(context.invocation_metadata(), self._token):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the cluster token is missing or wrong")
        if self._stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is stopping")
        peer = context.peer()  # empty once the router is gone
        session = ServedSession(
            self._worker,
            context,
            max_unsent_bytes=self._max_unsent_bytes,
            accepts_calls=lambda: not self._stopping,
        )
        self._sessions.add(session)
        try:
            reason = await session.run()
        finally:
            self._sessions.discard(session)
            session.closed.set()
        if reason:
            _LOG.warning("session with %s ended: %s", peer, reason)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)

    def _on_step(self) -> None:
        for session in self._sessions:
            session.state_changed()
