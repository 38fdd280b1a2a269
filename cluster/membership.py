"""Who the workers are: memberships published by the controller and followed by routers.

Owns the Watch stream, both ends, and the rule for versions. Must not know how workers are started or reached.

The rule: the versions of one controller only grow. Within one stream a message that is not newer is therefore ignored.
The first message of a new stream is taken whatever its version: the same controller cannot have gone back, so a lower
version means that another controller has taken its place and counts from its own start. While no controller answers,
the membership known last stays in force. Beside it the controller tells what it decided about the pools, which has no
version: a message that tells of nothing else is no news of the membership.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, Protocol

import grpc
import grpc.aio

from cluster import channel, codec
from cluster.pb import worker_pb2 as pb
from core.cluster_token import token_metadata, token_presented
from core.component_tls import CLOSED_PLAIN, CLOSED_TLS, ComponentTLS, tls_remedy
from core.errors import ConfigError, Unauthorized, WorkerError
from core.types import ControlDecision, Membership

_LOG = logging.getLogger(__name__)

_FIRST_BACK_OFF_S: Final = 0.1
_MAX_BACK_OFF_S: Final = 2.0
_CLOSE_S: Final = 1.0


class MembershipSource(Protocol):
    """Tells who the workers are."""

    def watch(self) -> AsyncIterator[Membership]:
        """Yield the membership in force, then each that replaces it; may skip those replaced at once."""
        ...


class StaticMembership:
    """A membership that never changes."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    async def watch(self) -> AsyncIterator[Membership]:
        """Yield the one membership and end."""
        yield self._membership


class MembershipServer:
    """The controller's end: `publish` replaces the membership; each watcher gets the newest it has not seen."""

    def __init__(self, *, host: str, port: int = 0, token: str = "", tls: ComponentTLS | None = None) -> None:
        self._address = f"{host}:{port}"
        self._token = token
        self._tls = tls
        self._newest: Membership | None = None
        self._decisions: tuple[ControlDecision, ...] = ()
        self._published = asyncio.Event()  # replaced at each publication: whoever holds it learns of the next one
        self._stopping = False
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Bind and serve; return the bound port.

        Raises StartFailed when the address cannot be bound, ConfigError for a certificate that cannot be used.
        """
        handler = grpc.unary_stream_rpc_method_handler(
            self._serve_watch,
            request_deserializer=pb.WatchRequest.FromString,
            response_serializer=pb.Membership.SerializeToString,
        )
        self._server, port = await channel.start_server(
            self._address, channel.CONTROLLER_SERVICE, {"Watch": handler}, tls=self._tls
        )
        return port

    def publish(self, membership: Membership) -> None:
        """Make `membership` the one in force.

        Raises ValueError when its version is not greater than that of the one before.
        """
        if self._newest is not None and membership.version <= self._newest.version:
            raise ValueError(f"version {membership.version} does not follow {self._newest.version}")
        self._newest = membership
        self._wake_watchers()

    def tell(self, decisions: tuple[ControlDecision, ...]) -> None:
        """Tell all watchers what was decided about the pools, newest first, in place of what was told before."""
        self._decisions = decisions
        self._wake_watchers()

    async def stop(self) -> None:
        """End every watch; idempotent."""
        server, self._server = self._server, None
        if server is not None:
            self._stopping = True
            self._wake_watchers()
            await server.stop(_CLOSE_S)

    def _wake_watchers(self) -> None:
        published, self._published = self._published, asyncio.Event()
        published.set()

    async def _serve_watch(self, _: pb.WatchRequest, context: grpc.aio.ServicerContext) -> None:
        if not token_presented(context.invocation_metadata(), self._token):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the cluster token is missing or wrong")
        sent: Membership | None = None
        told: tuple[ControlDecision, ...] = ()
        while not self._stopping:
            published = self._published
            if self._newest is not None and (self._newest is not sent or self._decisions is not told):
                sent, told = self._newest, self._decisions
                await context.write(codec.membership_to_pb(sent, told))
            else:
                await published.wait()


class MembershipClient:
    """A router's end: follows one controller, and its successors at the same address."""

    def __init__(self, address: str, token: str, *, tls: ComponentTLS | None = None) -> None:
        self._address = address
        self._token = token
        self._tls = tls
        self.decisions: tuple[ControlDecision, ...] = ()  # about the pools, as told last; newest first

    async def watch(self) -> AsyncIterator[Membership]:
        """Yield memberships as the controller publishes them; reconnect for ever, with bounded back-off.

        Raises Unauthorized when the controller refuses the token.
        """
        known: Membership | None = None
        back_off_s = _FIRST_BACK_OFF_S
        while True:
            try:
                async with aclosing(self._watch_once()) as memberships:
                    async for membership in memberships:
                        back_off_s = _FIRST_BACK_OFF_S
                        if membership != known:
                            known = membership
                            yield membership
                reason = "the controller ended the stream"
            except Unauthorized:
                raise
            except (WorkerError, ConfigError) as exc:  # the latter: files that are being replaced
                reason = str(exc)
            _LOG.info("controller at %s lost (%s); next try in %.1f s", self._address, reason, back_off_s)
            await asyncio.sleep(back_off_s)
            back_off_s = min(2 * back_off_s, _MAX_BACK_OFF_S)

    async def _watch_once(self) -> AsyncGenerator[Membership, None]:
        """Yield what one stream brings, versions growing.

        Raises Unauthorized, or WorkerError when the stream breaks or brings what this version cannot read.
        """
        opened = channel.open_channel(self._address, self._tls)
        try:
            open_stream = opened.unary_stream(
                channel.WATCH_METHOD,
                request_serializer=pb.WatchRequest.SerializeToString,
                response_deserializer=pb.Membership.FromString,
            )
            stream = open_stream(pb.WatchRequest(), metadata=token_metadata(self._token))
            version = -1
            while (message := await stream.read()) is not grpc.aio.EOF:
                self.decisions = codec.decisions_from_pb(message)
                if message.version > version:
                    version = message.version
                    yield codec.membership_from_pb(message)
        except grpc.aio.AioRpcError as exc:
            if exc.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise Unauthorized(f"controller at {self._address}: {exc.details()}") from exc
            raise WorkerError(self._reason(exc)) from exc
        finally:
            await opened.close()

    def _reason(self, exc: grpc.aio.AioRpcError) -> str:
        """Say why the stream broke, and what to do where TLS may be the cause."""
        details = exc.details() or exc.code().name
        remedy = tls_remedy(details)
        if not remedy and "Socket closed" in details:  # before the first call: the other end wants something else
            remedy = CLOSED_TLS if self._tls else CLOSED_PLAIN
        return f"{details}; {remedy}" if remedy else details
