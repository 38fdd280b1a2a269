"""Hand-over streams and their control calls over gRPC, as raw frames without protobuf.

Owns the server, the channels and who is let in. Both directions run on one event loop, the KV thread's.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import grpc
from grpc._cython import cygrpc

from core.cluster_token import token_metadata, token_presented
from core.component_tls import ComponentTLS
from core.errors import ConfigError, KVTransferError, TransferAborted, TransferTimeout
from kv_transfer.allocator import keep_freed_buffers
from kv_transfer.grpc_credentials import open_channel, open_port
from kv_transfer.grpc_stream import ADMITTED, MESSAGE_BYTES, GrpcIncoming, GrpcOutgoing, translate
from kv_transfer.transport import Serve

logger = logging.getLogger(__name__)
NAME = "grpc"
SERVICE = "baton.kv.Transfer"
_MAX_MESSAGE_BYTES: Final = 4 * MESSAGE_BYTES  # nothing that is larger is taken, whoever sends it
CONTROL_TIMEOUT_S = 2.0
OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.http2.max_frame_size", 1 << 20),  # fewer, larger HTTP/2 frames: bench of the peers, "tune=1"
    ("grpc.optimization_target", "throughput"),
    ("grpc.so_reuseport", 0),
    # A peer that comes back at its old address is found at once and not, by gRPC's custom, up to two minutes later.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A peer that froze or lost its network is noticed by pings, not by the lease.
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),  # without it the keepalive time-out does not bite (default 60 s)
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
)

Control = Callable[[str, dict[str, str]], Awaitable[dict[str, object]]]


def control_request(verb: str, arguments: dict[str, str]) -> bytes:
    """Encode a control call."""
    return json.dumps({"verb": verb, **arguments}).encode()


def is_worth_logging(record: logging.LogRecord) -> bool:
    """Tell gRPC's errors from its report that a peer left between the last message of a stream and its status.

    gRPC logs that as an error with a traceback, unless it has heard of the departure by then. Here it is how every
    sender ends a stream: it has the verdict and wants no status.
    """
    return record.exc_info is None or not isinstance(record.exc_info[1], cygrpc.ExecuteBatchError)


class GrpcTransport:
    """Listens for streams and control calls, and opens them; implements kv_transfer.transport.Transport."""

    name = NAME

    def __init__(self, control: Control, *, token: str, port: int = 0, tls: ComponentTLS | None = None) -> None:
        self._control = control
        self._token = token
        self._tls = tls
        self._port = port  # 0: any that is free
        self._serve: Serve | None = None
        self._server: grpc.aio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()  # all and only streams that are served
        self._channels: dict[str, grpc.aio.Channel] = {}  # one to each peer, kept open
        self._streams: set[GrpcOutgoing] = set()  # all and only outgoing ones that are open
        self._is_closed = False
        self._keeps_buffers = False  # from the first stream on; control calls alone need none

    async def listen(self, host: str, serve: Serve) -> str:
        """Bind and listen; return host:port. Raises OSError when the port is taken."""
        self._serve = serve
        server = grpc.aio.server(options=OPTIONS)
        handlers = {
            "Push": grpc.stream_stream_rpc_method_handler(self._push),
            "Control": grpc.unary_unary_rpc_method_handler(self._unary),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            bound = open_port(server, f"{host}:{self._port}", self._tls)
        except RuntimeError as exc:
            raise OSError(f"cannot listen for KV on {host}:{self._port}; choose another port") from exc
        await server.start()
        logging.getLogger(cygrpc.__name__).addFilter(is_worth_logging)
        self._server = server
        return f"{host}:{bound}"

    async def connect(self, address: str, timeout_s: float) -> GrpcOutgoing:
        """Open a stream to a peer, once it has said that it takes it.

        Raises Unauthorized, TransferAborted or TransferTimeout.
        """
        self._keep_buffers()
        call = self._channel(address).stream_stream(f"/{SERVICE}/Push")(metadata=token_metadata(self._token))
        stream = GrpcOutgoing(call, self._streams.discard)
        self._streams.add(stream)
        try:
            async with asyncio.timeout(timeout_s):
                await stream.admitted()
        except TimeoutError as exc:
            stream.close()
            raise TransferTimeout(f"KV peer {address} did not answer within {timeout_s:g} s") from exc
        except BaseException:
            stream.close()
            raise
        return stream

    async def call(self, peer: str, verb: str, arguments: dict[str, str]) -> dict[str, object]:
        """Call a control verb of a peer. Raises TransferAborted or TransferTimeout."""
        method = self._channel(peer).unary_unary(f"/{SERVICE}/Control")
        try:
            reply = await method(
                control_request(verb, arguments), timeout=CONTROL_TIMEOUT_S, metadata=token_metadata(self._token)
            )
        except grpc.RpcError as exc:
            raise translate(exc) from exc
        return dict(json.loads(reply))

    async def refuse(self, peer: str, transfer_id: str, reason: str) -> None:
        """Tell a peer that an offer is withdrawn; a peer that cannot be told has its lease."""
        try:
            await self.call(peer, "cancel", {"transfer_id": transfer_id, "reason": reason})
        except KVTransferError as exc:
            logger.warning("peer %s was not told that %s is withdrawn: %s", peer, transfer_id, exc)

    async def close(self) -> None:
        """Stop at once, on both sides; open streams end. Idempotent."""
        self._is_closed = True
        for stream in list(self._streams):
            stream.close()
        if self._server is not None:
            await self._server.stop(None)
        for channel in self._channels.values():
            await channel.close(None)
        self._channels.clear()
        for serving in self._serving:
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _channel(self, peer: str) -> grpc.aio.Channel:
        if self._is_closed:
            raise TransferAborted("the transport is closed")
        channel = self._channels.get(peer)
        if channel is None:
            channel = self._channels[peer] = open_channel(peer, OPTIONS, self._tls)
        return channel

    def _keep_buffers(self) -> None:
        if not self._keeps_buffers:
            self._keeps_buffers = True
            keep_freed_buffers()

    async def _authorize(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        if not token_presented(context.invocation_metadata(), self._token):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the cluster token is missing or wrong")

    async def _push(self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await self._authorize(context)
        assert self._serve is not None, "streams come only after `listen`"
        self._keep_buffers()
        await context.send_initial_metadata((ADMITTED,))
        incoming = GrpcIncoming(context)
        serving = asyncio.ensure_future(self._serve(incoming))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)
        try:
            await asyncio.shield(serving)  # gRPC cancels this call when the sender leaves; serving ends by itself
        finally:
            incoming.close()

    async def _unary(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await self._authorize(context)
        try:
            verb, arguments = _read_control(request)
            return json.dumps(await self._control(verb, arguments)).encode()
        except (ValueError, KeyError, ConfigError) as exc:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"malformed control call: {exc}")
            raise AssertionError("abort raises") from exc


def _read_control(request: bytes) -> tuple[str, dict[str, str]]:
    """Decode a control call. Raises ValueError when it is not what `control_request` makes."""
    try:
        arguments = json.loads(request)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    if not isinstance(arguments, dict) or not all(isinstance(value, str) for value in arguments.values()):
        raise ValueError("not an object of strings")
    return arguments.pop("verb", ""), arguments
