"""What both ends of every gRPC stream of the cluster agree on: method names and channel options.

Knows nothing of the messages that the streams carry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
import grpc.aio

from core.errors import StartFailed

WORKER_SERVICE: Final = "baton.cluster.Worker"
CONTROLLER_SERVICE: Final = "baton.cluster.Controller"
SESSION_METHOD: Final = f"/{WORKER_SERVICE}/Session"
WATCH_METHOD: Final = f"/{CONTROLLER_SERVICE}/Watch"

DEFAULT_MAX_BODY_BYTES: Final = 128 << 20
MAX_BODY_BYTES: Final = 1 << 30
_ENVELOPE_BYTES: Final = 1 << 20  # headers and ids around the largest body

HEARTBEAT_S: Final = 1.0  # a worker's stream is never silent for longer
SILENCE_S: Final = 3.0  # a router gives a worker up that was silent for this long

# Each end pings each second and gives the other two seconds to answer. The answer comes from gRPC's own threads, so
# a busy event loop passes and a frozen process or a cut host does not. gRPC's defence against ping floods (at most
# two pings without data, one per five minutes) is lifted on both sides to allow it.
_KEEPALIVE: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 300),
    ("grpc.http2.max_ping_strikes", 0),
)


def server_options(max_body_bytes: int) -> tuple[tuple[str, int], ...]:
    """List the options of a server that takes request bodies up to `max_body_bytes`."""
    return (
        *_KEEPALIVE,
        ("grpc.so_reuseport", 0),  # a taken port is an error, not a second owner
        ("grpc.max_receive_message_length", max_body_bytes + _ENVELOPE_BYTES),
        ("grpc.max_send_message_length", -1),
    )


async def start_server(
    address: str, service: str, handlers: Mapping[str, grpc.RpcMethodHandler], *, max_body_bytes: int
) -> tuple[grpc.aio.Server, int]:
    """Serve the methods of one service at `address` (host:port, 0 for any port); return the server and its port.

    Raises StartFailed when the address cannot be bound.
    """
    server = grpc.aio.server(options=server_options(max_body_bytes))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(handlers)),))
    try:
        port = int(server.add_insecure_port(address))
    except RuntimeError as exc:
        raise StartFailed(f"cannot listen on {address}: {exc}") from exc
    await server.start()
    return server, port


def open_channel(address: str) -> grpc.aio.Channel:
    """Open a channel of its own to `address`: no shared connection, no proxy, no retry, no back-off carried over."""
    options = (
        *_KEEPALIVE,
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 3000),  # also what one attempt to connect may take
        ("grpc.max_reconnect_backoff_ms", 3000),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    )
    return grpc.aio.insecure_channel(address, options=options)
