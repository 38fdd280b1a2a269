"""Certificates and keys of TLS, from their files.

Owns the loading of them, with errors that name the key of the configuration. Must not know sockets or HTTP.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PairKeys:
    """The keys of the configuration that name a certificate and its private key; errors speak of them."""

    cert: str
    key: str


_CERTIFICATE: Final = b"CERTIFICATE-----"
FRONT: Final = PairKeys("router.tls_cert", "router.tls_key")


def load_pair(context: ssl.SSLContext, cert: Path, key: Path, *, keys: PairKeys = FRONT) -> None:
    """Make `context` show this certificate chain; connections that exist keep theirs.

    Raises ConfigError that names the file at fault and what to do.
    """
    for name, path in ((keys.cert, cert), (keys.key, key)):
        read_file(name, path)
    try:
        context.load_cert_chain(cert, key, password=_no_password(keys))
    except ssl.SSLError as exc:
        raise ConfigError(_words(exc, cert, key, keys)) from exc


def load_authority(context: ssl.SSLContext, ca: Path, *, name: str) -> None:
    """Make `context` trust the certificates in `ca`, the file that the key `name` gives.

    Raises ConfigError that names the file and what to do.
    """
    data = read_file(name, ca)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as exc:
        fault = f"{ca} cannot be used: {exc.reason or exc}" if _CERTIFICATE in data else f"{ca} holds no certificate"
        raise ConfigError(f"{name}: {fault}; name the PEM file of the authority's certificate") from exc


def context_trusting(ca: Path | None, *, name: str) -> ssl.SSLContext | None:
    """Make a client's context that trusts the certificates in `ca` alone; None: what the machine trusts.

    Raises ConfigError that names the file and what to do.
    """
    if ca is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_authority(context, ca, name=name)
    return context


def read_file(name: str, path: Path) -> bytes:
    """Read the file that the key `name` gives. Raises ConfigError that names both."""
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise ConfigError(f"{name}: there is no file {path}") from exc
    except IsADirectoryError as exc:
        raise ConfigError(f"{name}: {path} is a folder; name the PEM file in it") from exc
    except OSError as exc:
        raise ConfigError(f"{name}: {path} cannot be read: {exc.strerror}") from exc


def _no_password(keys: PairKeys) -> Callable[[], str]:
    """Stand in for the question on the terminal that OpenSSL would ask for an encrypted key."""

    def refuse() -> str:
        raise ConfigError(f"{keys.key}: the key is encrypted; write it without a password, readable for this user only")

    return refuse


def _words(error: ssl.SSLError, cert: Path, key: Path, keys: PairKeys) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return (
            f"{keys.key}: {key} is not the key of the certificate {cert}; the first certificate in it must be its own"
        )
    if not _holds(cert, _CERTIFICATE):
        return f"{keys.cert}: {cert} holds no certificate in PEM form"
    if not _holds(key, b"PRIVATE KEY-----"):
        return f"{keys.key}: {key} holds no private key in PEM form"
    return f"{keys.cert}, {keys.key}: {cert} and {key} cannot be used: {error.reason or error}"


def _holds(path: Path, mark: bytes) -> bool:
    return mark in path.read_bytes()
