"""How the commands of this machine reach the router that `up` started here: by which URL, trust and key.

Owns the two files that a run keeps for that: the certificate its router shows, and the operator's key. They are of the
run, so that commands need no flags and a certificate renewed on disk does not lock them out before the router has it.
Must not know what is asked.
"""

from __future__ import annotations

import shlex
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

from cluster.child import write_private
from core.cluster_token import operator_key
from core.config.model_files import file_location
from core.config.models import BatonConfig
from core.errors import ConfigError
from core.tls_files import FRONT, read_file

CERT_FILE: Final = "front.crt"  # in the folder of the run, if its router speaks TLS
KEY_FILE: Final = "operator.key"  # there too, if its router asks for keys
ASK_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Front:
    """A router as this machine reaches it."""

    url: str
    tls: ssl.SSLContext | None = None  # None: whom the machine trusts, if the URL is https
    key: str = field(default="", repr=False)  # empty: none is sent


def keep_for_commands(config: BatonConfig, *, base: Path, run_dir: Path, token: str) -> None:
    """Write what later commands need to reach this run's router.

    Raises ConfigError for a certificate that cannot be read.
    """
    router = config.router
    if router.tls_cert is not None:
        chain = read_file(FRONT.cert, Path(file_location(router.tls_cert, base)))
        write_private(run_dir / CERT_FILE, first_certificate(chain.decode("ascii", "replace")))
    if router.tenants is not None:
        write_private(run_dir / KEY_FILE, operator_key(token) + "\n")


def front_at(address: str, run_dir: Path) -> Front:
    """Reach the router of a run that listens on `address`, a host:port.

    Raises ConfigError for a file that is broken.
    """
    host, _, port = address.rpartition(":")
    if host in ("0.0.0.0", "", "[::]", "::"):
        host = "127.0.0.1"
    scheme = "https" if (run_dir / CERT_FILE).is_file() else "http"
    return front_of(f"{scheme}://{host}:{port}", run_dir)


def front_of(url: str, run_dir: Path) -> Front:
    """Reach the router of a run by its URL. Raises ConfigError for a file that is missing or broken."""
    tls = pinned_to(run_dir / CERT_FILE) if urlsplit(url).scheme == "https" else None
    key_file = run_dir / KEY_FILE
    return Front(url, tls, read_file(KEY_FILE, key_file).decode().strip() if key_file.is_file() else "")


def first_certificate(chain: str) -> str:
    """Take the server's own certificate out of a PEM file of a chain.

    The others in it sign certificates of strangers too, so that they must not be trusted where no name is compared.
    Raises ConfigError when there is none.
    """
    _, begin, rest = chain.partition(ssl.PEM_HEADER)
    body, end, _ = rest.partition(ssl.PEM_FOOTER)
    if not end:
        raise ConfigError(f"{FRONT.cert}: holds no certificate in PEM form")
    return begin + body + end + "\n"


def pinned_to(cert: Path) -> ssl.SSLContext:
    """Make a context that trusts the one certificate in `cert`, whoever signed it and whatever name it carries.

    Raises ConfigError for a file that is missing or broken.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the router is reached by its address, which certificates seldom name
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    pem = first_certificate(read_file(CERT_FILE, cert).decode("ascii", "replace"))
    try:
        context.load_verify_locations(cadata=pem)
    except ssl.SSLError as exc:
        raise ConfigError(f"{FRONT.cert}: {cert} cannot be used: {exc.reason or exc}") from exc
    return context


def curl_line(front: Front, run_dir: Path) -> str:
    """Write the beginning of a curl command, up to the path of its URL, that trusts this router and only it.

    Asks the router for the names on its certificate, for curl compares them; one that does not answer is called by
    its address.
    """
    if front.tls is None:
        return f"curl {front.url}"
    parts = urlsplit(front.url)
    words = ["curl", "--cacert", str(run_dir / CERT_FILE)]
    name = _name_for(parts.hostname or "", _names_on_certificate(front.url, front.tls))
    if name is None:
        return shlex.join([*words, front.url])
    return shlex.join([*words, "--connect-to", f"::{parts.netloc}", f"https://{name}:{parts.port}"])


def _names_on_certificate(url: str, tls: ssl.SSLContext) -> Sequence[tuple[str, str]]:
    parts = urlsplit(url)
    try:
        with (
            socket.create_connection((parts.hostname or "", parts.port or 443), timeout=ASK_S) as plain,
            tls.wrap_socket(plain) as secure,
        ):
            found = secure.getpeercert() or {}
    except OSError:
        return ()
    # The standard library's own documentation gives this entry as pairs of kind and name.
    return cast(Sequence[tuple[str, str]], found.get("subjectAltName", ()))


def _name_for(host: str, names: Sequence[tuple[str, str]]) -> str | None:
    """Choose the DNS name to call a router by; None: its address is on the certificate, or no name is."""
    if ("IP Address", host) in names:
        return None
    dns = [name.replace("*", "baton", 1) for kind, name in names if kind == "DNS"]
    return dns[0] if dns else None
