"""TLS between Baton's own processes: each shows a certificate, and each checks the other's.

Owns what is checked, for every socket between components. Must not know sockets, nor gRPC: who opens a gRPC port takes
the PEM texts.

The rule: a certificate must be signed by the cluster's authority, and that of whoever is connected to must carry the
cluster's name as well (a DNS name, `baton` by default), whatever its address is. Addresses change with each start, a
certificate for each of them would have to be made after the address is known; and one name is all that gRPC can be told
to look for. So one certificate may serve all components, or each may have its own. The name keeps apart what an
authority with other customers has signed. The cluster token is asked for on top: a certificate admits nobody alone.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.tls_files import PairKeys, load_authority, load_pair, read_file

CA_KEY: Final = "security.ca"
KEYS: Final = PairKeys("security.cert", "security.key")
DEFAULT_NAME: Final = "baton"


@dataclass(frozen=True, slots=True)
class ComponentTLS:
    """Where a process finds its certificate, on its own machine, and whom it trusts; holds no secret."""

    ca: str  # absolute paths
    cert: str
    key: str
    name: str = DEFAULT_NAME  # in the certificate of whoever is connected to

    def for_servers(self) -> ssl.SSLContext:
        """Make the context of a port: nobody is served without a certificate of the authority.

        Raises ConfigError that names the file at fault.
        """
        return self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def for_clients(self) -> ClientTLS:
        """Make what is needed to connect to such a port. Raises ConfigError that names the file at fault."""
        return ClientTLS(self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)), self.name)

    def pem(self) -> PemTexts:
        """Read the files for gRPC, which takes texts. Raises ConfigError that names the file at fault."""
        self.for_servers()  # gRPC itself would fail late, and not say of what
        return PemTexts(
            ca=read_file(CA_KEY, Path(self.ca)),
            cert=read_file(KEYS.cert, Path(self.cert)),
            key=read_file(KEYS.key, Path(self.key)),
        )

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours: nothing older is needed
        context.verify_mode = ssl.CERT_REQUIRED
        load_authority(context, Path(self.ca), name=CA_KEY)
        load_pair(context, Path(self.cert), Path(self.key), keys=KEYS)
        return context


@dataclass(frozen=True, slots=True)
class ClientTLS:
    """How to connect by TLS: the context, and the name that the other end's certificate must carry."""

    context: ssl.SSLContext
    server_name: str | None = None  # None: the address


@dataclass(frozen=True, slots=True)
class PemTexts:
    """What gRPC makes credentials of."""

    ca: bytes
    cert: bytes
    key: bytes

    def __repr__(self) -> str:
        """Keep the private key out of logs."""
        return "PemTexts(...)"


# What it may mean that the other end closes a connection before a word was said: it does not tell why.
CLOSED_PLAIN: Final = "if it wants TLS: give both ends the same security section"
CLOSED_TLS: Final = "if it refused the certificate: security.ca there must have signed security.cert here"


def tls_from_json(raw: dict[str, str] | None) -> ComponentTLS | None:
    """Read what `dataclasses.asdict` made of a ComponentTLS, or of none."""
    return ComponentTLS(**raw) if raw else None


def tls_remedy(error: str) -> str:
    """Say what to do about a connection that TLS ended, from what OpenSSL or gRPC says of it; empty if it was not TLS.

    A certificate that was refused may be either end's: what OpenSSL heard from the other end it calls an alert.
    """
    text = error.upper()
    for mark, words in _REMEDIES:
        if mark in text:
            return words
    return ""


_REMEDIES: Final = (
    ("ALERT", CLOSED_TLS),
    ("HOSTNAME MISMATCH", "its certificate does not carry security.name as a DNS name"),
    ("HOSTNAME VERIFICATION", "its certificate does not carry security.name as a DNS name"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not signed by security.ca of this end, or its time has passed"),
    ("WRONG_VERSION_NUMBER", "the other end does not speak TLS: give it the same security section"),
    ("SSL", "both ends must have security.ca, security.cert and security.key of one authority"),
)
