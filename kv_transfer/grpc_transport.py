"""Hand-over streams and their control calls over gRPC, as raw frames without protobuf.

Owns sockets, tokens and the translation of gRPC errors. Both directions run on one event loop, the KV thread's.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import grpc
from grpc._cython import cygrpc

from core.cluster_token import token_metadata, token_presented
from core.component_tls import ComponentTLS
from core.errors import ConfigError, KVTransferError, TransferAborted, TransferTimeout
from kv_transfer.grpc_credentials import open_channel, open_port

logger = logging.getLogger(__name__)
SERVICE = "baton.kv.Transfer"
_MAX_MESSAGE_BYTES = 1 << 30
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

ServeStream = Callable[[AsyncIterator[bytes]], AsyncGenerator[bytes, None]]
Control = Callable[[str, dict[str, str]], Awaitable[dict[str, object]]]


def control_request(verb: str, arguments: dict[str, str]) -> bytes:
    """Encode a control call."""
    return json.dumps({"verb": verb, **arguments}).encode()


def translate(exc: grpc.RpcError) -> KVTransferError:
    """Turn a gRPC error into ours."""
    code = exc.code() if isinstance(exc, grpc.aio.AioRpcError) else None
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TransferTimeout("the peer did not answer in time")
    return TransferAborted(f"the stream to the peer broke ({code.name if code else exc})")


def is_worth_logging(record: logging.LogRecord) -> bool:
    """Tell gRPC's errors from its report that a peer left between the last message of a stream and its status.

    gRPC logs that as an error with a traceback, unless it has heard of the departure by then. Here it is how every
    sender ends a stream: it has the verdict and wants no status.
    """
    return record.exc_info is None or not isinstance(record.exc_info[1], cygrpc.ExecuteBatchError)


class GrpcServer:
    """Listens for hand-over streams and control calls."""

    def __init__(
        self, serve_stream: ServeStream, control: Control, *, token: str, tls: ComponentTLS | None = None
    ) -> None:
        self._serve_stream = serve_stream
        self._control = control
        self._token = token
        self._tls = tls
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Bind and listen; return the port. Raises OSError when the port is taken."""
        server = grpc.aio.server(options=OPTIONS)
        handlers = {
            "Push": grpc.stream_stream_rpc_method_handler(self._push),
            "Control": grpc.unary_unary_rpc_method_handler(self._unary),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            bound = open_port(server, f"{host}:{port}", self._tls)
        except RuntimeError as exc:
            raise OSError(f"cannot listen for KV on {host}:{port}; choose another port") from exc
        await server.start()
        logging.getLogger(cygrpc.__name__).addFilter(is_worth_logging)
        self._server = server
        return bound

    async def stop(self) -> None:
        """Stop at once; open streams are cancelled."""
        if self._server is not None:
            await self._server.stop(None)

    async def _authorize(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        if not token_presented(context.invocation_metadata(), self._token):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the cluster token is missing or wrong")

    async def _push(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        await self._authorize(context)
        async with aclosing(self._serve_stream(aiter(requests))) as replies:
            async for reply in replies:
                yield reply

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


class GrpcStream:
    """One outgoing hand-over stream; implements kv_transfer.sender.Stream."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float, token: str) -> None:
        self._call = channel.stream_stream(f"/{SERVICE}/Push")(timeout=timeout_s, metadata=token_metadata(token))

    async def write(self, message: bytes) -> None:
        """Send one message. Raises TransferAborted or TransferTimeout when the stream is gone."""
        try:
            await self._call.write(message)
        except grpc.RpcError as exc:
            raise translate(exc) from exc
        except (grpc.aio.UsageError, asyncio.InvalidStateError) as exc:  # the latter: the peer ended it before
            raise TransferAborted("the stream to the peer is closed") from exc

    async def read(self) -> bytes:
        """Wait for one message. Raises TransferAborted or TransferTimeout when the stream is gone."""
        try:
            message = await self._call.read()
        except grpc.RpcError as exc:
            raise translate(exc) from exc
        if message is grpc.aio.EOF:
            raise TransferAborted("the peer ended the stream")
        return bytes(message)

    def close(self) -> None:
        """End the stream at once; idempotent."""
        self._call.cancel()


class GrpcPeers:
    """Channels to peers, one each, kept open; implements kv_transfer.sender.Peers."""

    def __init__(self, token: str, tls: ComponentTLS | None = None) -> None:
        self._token = token
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}

    def connect(self, peer: str, timeout_s: float) -> GrpcStream:
        """Open a hand-over stream to `peer` (host:port)."""
        return GrpcStream(self._channel(peer), timeout_s, self._token)

    async def refuse(self, peer: str, transfer_id: str, reason: str) -> None:
        """Tell a peer that an offer is withdrawn; a peer that cannot be told has its lease."""
        request = control_request("cancel", {"transfer_id": transfer_id, "reason": reason})
        call = self._channel(peer).unary_unary(f"/{SERVICE}/Control")
        try:
            await call(request, timeout=CONTROL_TIMEOUT_S, metadata=token_metadata(self._token))
        except grpc.RpcError as exc:
            logger.warning("peer %s was not told that %s is withdrawn: %s", peer, transfer_id, translate(exc))

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels.values():
            await channel.close(None)
        self._channels.clear()

    def _channel(self, peer: str) -> grpc.aio.Channel:
        channel = self._channels.get(peer)
        if channel is None:
            channel = self._channels[peer] = open_channel(peer, OPTIONS, self._tls)
        return channel
