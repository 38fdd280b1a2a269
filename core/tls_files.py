"""Certificate and key of a TLS server, from their files.

Owns the loading of both, with errors that name the key of the configuration. Must not know sockets or HTTP.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from core.errors import ConfigError

_CERT, _KEY = "router.tls_cert", "router.tls_key"


def load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Make `context` show this certificate chain; connections that exist keep theirs.

    Raises ConfigError that names the file at fault and what to do.
    """
    for name, path in ((_CERT, cert), (_KEY, key)):
        _check_readable(name, path)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as exc:
        raise ConfigError(_words(exc, cert, key)) from exc


def _check_readable(name: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError as exc:
        raise ConfigError(f"{name}: there is no file {path}") from exc
    except IsADirectoryError as exc:
        raise ConfigError(f"{name}: {path} is a folder; name the PEM file in it") from exc
    except OSError as exc:
        raise ConfigError(f"{name}: {path} cannot be read: {exc.strerror}") from exc


def _no_password() -> str:
    """Stand in for the question on the terminal that OpenSSL would ask for an encrypted key."""
    raise ConfigError(f"{_KEY}: the key is encrypted; write it without a password, readable for this user only")


def _words(error: ssl.SSLError, cert: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return (
            f"{_KEY}: {key} is not the key of the certificate {cert}; the first certificate in it must be the server's"
        )
    if not _holds(cert, b"CERTIFICATE-----"):
        return f"{_CERT}: {cert} holds no certificate in PEM form"
    if not _holds(key, b"PRIVATE KEY-----"):
        return f"{_KEY}: {key} holds no private key in PEM form"
    return f"{_CERT}, {_KEY}: {cert} and {key} cannot be used: {error.reason or error}"


def _holds(path: Path, mark: bytes) -> bool:
    return mark in path.read_bytes()
