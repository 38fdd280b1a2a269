"""What both ends of the controller's gRPC stream agree on: method names and channel options.

Knows nothing of the messages that the stream carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
import grpc.aio

from core.component_tls import ComponentTLS
from core.errors import StartFailed
from kv_transfer import grpc_credentials

CONTROLLER_SERVICE: Final = "baton.cluster.Controller"
WATCH_METHOD: Final = f"/{CONTROLLER_SERVICE}/Watch"

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


_SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    *_KEEPALIVE,
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a second owner
    ("grpc.max_send_message_length", -1),
)


async def start_server(
    address: str, service: str, handlers: Mapping[str, grpc.RpcMethodHandler], *, tls: ComponentTLS | None = None
) -> tuple[grpc.aio.Server, int]:
    """Serve the methods of one service at `address` (host:port, 0 for any port); return the server and its port.

    Raises StartFailed when the address cannot be bound, ConfigError for a certificate that cannot be used.
    """
    server = grpc.aio.server(options=_SERVER_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(handlers)),))
    try:
        port = grpc_credentials.open_port(server, address, tls)
    except RuntimeError as exc:
        raise StartFailed(f"cannot listen on {address}: {exc}") from exc
    await server.start()
    return server, port


def open_channel(address: str, tls: ComponentTLS | None = None) -> grpc.aio.Channel:
    """Open a channel of its own to `address`: no shared connection, no proxy, no retry, no back-off carried over.

    Raises ConfigError for a certificate that cannot be used.
    """
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
    return grpc_credentials.open_channel(address, options, tls)
