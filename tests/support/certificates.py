"""Certificates for tests, made when they are needed."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from core.component_tls import DEFAULT_NAME, ComponentTLS


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


def make_pair(folder: Path, name: str, *, password: bytes | None = None) -> Pair:
    """Write `name.crt`, which vouches for itself, and `name.key` for a server at 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    cert = _draft(subject, subject, key).add_extension(names, critical=False).sign(key, hashes.SHA256())
    return _write(folder, name, cert, key, password)


class Authority:
    """One that signs the certificates of a cluster's components; its own is `name.crt`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject(name)
        is_authority = x509.BasicConstraints(ca=True, path_length=None)
        draft = _draft(self._name, self._name, self._key).add_extension(is_authority, critical=True)
        self.cert = _write(folder, name, draft.sign(self._key, hashes.SHA256()), self._key, None).cert

    def issue(self, name: str, *, dns: str = DEFAULT_NAME) -> Pair:
        """Write `name.crt` and `name.key` of a component in a cluster called `dns`."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(dns)])
        draft = _draft(_subject(name), self._name, key).add_extension(names, critical=False)
        return _write(self._folder, name, draft.sign(self._key, hashes.SHA256()), key, None)

    def component(self, name: str, *, dns: str = DEFAULT_NAME) -> ComponentTLS:
        """Issue a certificate and say where it is, for a component that trusts this authority."""
        pair = self.issue(name, dns=dns)
        return ComponentTLS(str(self.cert), str(pair.cert), str(pair.key))


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _draft(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def _write(
    folder: Path, name: str, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey, password: bytes | None
) -> Pair:
    form = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    pair.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form))
    return pair
