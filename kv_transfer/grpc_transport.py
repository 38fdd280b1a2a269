"""Hand-over streams and their control calls over gRPC, as raw frames without protobuf.

Owns sockets, tokens and the translation of gRPC errors. Both directions run on one event loop, the KV thread's.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import grpc
from grpc._cython import cygrpc

from core.cluster_token import token_metadata, token_presented
from core.component_tls import ComponentTLS
from core.errors import ConfigError, CorruptFrame, KVTransferError, TransferAborted, TransferTimeout
from kv_transfer.copying import land_hashed
from kv_transfer.frames import HEADER_BYTES, Header, read_header
from kv_transfer.grpc_credentials import open_channel, open_port
from kv_transfer.transport import Serve, StagedFrame

logger = logging.getLogger(__name__)
NAME = "grpc"
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


class GrpcIncoming:
    """The receiver's end of one stream; implements kv_transfer.transport.Incoming.

    A message holds whole frames, one or more.
    """

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._context = context
        self._message = memoryview(b"")  # what is left of the message that is being taken
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def header(self) -> Header:
        """Wait for the next frame."""
        if not self._message:
            self._message = memoryview(await self._read())
        if self._message.nbytes < HEADER_BYTES:
            raise CorruptFrame("a frame header is cut")
        header = read_header(self._take(HEADER_BYTES))
        if header.size > self._message.nbytes:
            raise CorruptFrame("a frame claims more bytes than the message holds")
        return header

    async def payload(self, header: Header) -> bytes:
        """Take the payload of a frame without KV."""
        return bytes(self._take(header.size))

    async def land(self, header: Header, rows: Sequence[memoryview]) -> int:
        """Copy the payload of a BLOCKS frame; nothing is written after it returned or raised."""
        if self._ended.done():
            raise TransferAborted("the stream is closed")
        return land_hashed(rows, self._take(header.size))

    async def write(self, message: bytes) -> None:
        """Answer with one frame."""
        if self._ended.done():
            raise TransferAborted("the stream is closed")
        try:
            await self._context.write(message)
        except (grpc.RpcError, grpc.aio.UsageError, cygrpc.ExecuteBatchError, asyncio.InvalidStateError) as exc:
            raise TransferAborted("the sender is gone") from exc

    def close(self) -> None:
        """End the stream at once: what is read or written fails; idempotent."""
        if not self._ended.done():
            self._ended.set_result(None)

    async def _read(self) -> bytes:
        if self._ended.done():
            raise TransferAborted("the stream is closed")
        reading = asyncio.ensure_future(self._context.read())
        try:
            await asyncio.wait({reading, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise TransferAborted("the stream is closed")
            message = reading.result()
        except (grpc.RpcError, grpc.aio.UsageError, cygrpc.ExecuteBatchError, asyncio.InvalidStateError) as exc:
            raise TransferAborted("the sender is gone") from exc
        finally:
            reading.cancel()
        if message is grpc.aio.EOF:
            raise TransferAborted("the sender ended the stream")
        return bytes(message)

    def _take(self, size: int) -> memoryview:
        part, self._message = self._message[:size], self._message[size:]
        return part


class GrpcOutgoing:
    """One stream to a peer; implements kv_transfer.transport.Outgoing."""

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

    async def write_blocks(self, frames: Sequence[StagedFrame]) -> None:
        """Send frames joined to one message: one costs 30-60 us whatever its size."""
        await self.write(b"".join(part for frame in frames for part in (frame.header, frame.payload)))

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
        """Open a stream that lives at most `timeout_s`; a peer that is not there shows in its first use."""
        return GrpcOutgoing(self._channel(address), timeout_s, self._token)

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
        """Stop at once, on both sides; open streams are cancelled."""
        if self._server is not None:
            await self._server.stop(None)
        for channel in self._channels.values():
            await channel.close(None)
        self._channels.clear()
        for serving in self._serving:
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _channel(self, peer: str) -> grpc.aio.Channel:
        channel = self._channels.get(peer)
        if channel is None:
            channel = self._channels[peer] = open_channel(peer, OPTIONS, self._tls)
        return channel

    async def _authorize(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        if not token_presented(context.invocation_metadata(), self._token):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the cluster token is missing or wrong")

    async def _push(self, _: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await self._authorize(context)
        assert self._serve is not None, "streams come only after `listen`"
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
