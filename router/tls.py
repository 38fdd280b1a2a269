"""TLS on the HTTP front.

Owns what is spoken: versions, application protocol, certificate. Must not know HTTP.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from core.errors import ConfigError
from core.tls_files import load_pair


def server_context(cert: str, key: str) -> ssl.SSLContext | None:
    """Make the context of a server from two PEM files; None when neither is named, for then there is no TLS.

    Raises ConfigError that names the key of the configuration at fault.
    """
    if not cert and not key:
        return None
    if not cert or not key:
        given, missing = ("router.tls_cert", "router.tls_key") if cert else ("router.tls_key", "router.tls_cert")
        raise ConfigError(f"{given}: needs {missing} beside it; give both, or none for no TLS")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # RFC 8996 forbids what is older; Python's own ciphers for a server are forward secret and authenticated.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client may not make the server reckon a new key exchange again and again on one connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    load_pair(context, Path(cert), Path(key))
    return context
