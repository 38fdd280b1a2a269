"""What gRPC needs of the components' certificates, or what it takes for plain connections.

Owns the making of credentials. Must not know services or addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import grpc
import grpc.aio

from core.component_tls import ComponentTLS

Options: TypeAlias = Sequence[tuple[str, int | str]]


def open_port(server: grpc.aio.Server, address: str, tls: ComponentTLS | None) -> int:
    """Have `server` listen at `address`, to peers with a certificate only if there is TLS; return the port.

    Raises RuntimeError when the address cannot be bound, ConfigError that names a file at fault.
    """
    if tls is None:
        return int(server.add_insecure_port(address))
    pem = tls.pem()
    credentials = grpc.ssl_server_credentials([(pem.key, pem.cert)], pem.ca, require_client_auth=True)
    return int(server.add_secure_port(address, credentials))


def open_channel(address: str, options: Options, tls: ComponentTLS | None) -> grpc.aio.Channel:
    """Open a channel to `address`, where the certificate must carry `tls.name`. Raises ConfigError."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    pem = tls.pem()
    credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)
    named = (*options, ("grpc.ssl_target_name_override", tls.name))
    return grpc.aio.secure_channel(address, credentials, options=named)
