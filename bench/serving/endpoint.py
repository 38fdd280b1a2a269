"""An OpenAI-compatible endpoint: where it is, whom to trust, which key to show.

Owns URLs, certificates, keys and the bytes of a request's head. Must not send anything.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from core.errors import ConfigError, reason_of
from core.tls_files import context_trusting

KEY_VARIABLE: Final = "OPENAI_API_KEY"  # as `vllm bench serve` and OpenAI's own clients read it
SLO_CLASS: Final = "x-slo-class"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server as this machine reaches it."""

    url: str  # without a slash at its end
    host: str
    port: int
    base_path: str = ""  # before /v1
    tls: ssl.SSLContext | None = None
    key: str = field(default="", repr=False)
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def authority(self) -> str:
        """Host and port as the `host` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def request_headers(self) -> dict[str, str]:
        """Make the headers that every request carries."""
        headers = {"host": self.authority, "content-type": "application/json", **dict(self.headers)}
        return headers | ({"authorization": f"Bearer {self.key}"} if self.key else {})

    def head(self, method: str, path: str) -> bytes:
        """Make the head of a request up to where more headers may follow."""
        lines = [f"{method} {self.base_path}{path} HTTP/1.1", *(f"{k}: {v}" for k, v in self.request_headers().items())]
        return ("\r\n".join(lines) + "\r\n").encode("latin-1")


def endpoint(
    url: str,
    *,
    tls: ssl.SSLContext | None = None,
    key: str = "",
    headers: tuple[tuple[str, str], ...] = (),
) -> Endpoint:
    """Take a URL apart; `/v1` at its end is taken as meant, for all paths begin with it anyway. Raises ConfigError."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is no URL of a server; write http://HOST:PORT or https://HOST:PORT")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as exc:
        raise ConfigError(f"{url!r}: {exc}; write http://HOST:PORT") from None
    base_path = parts.path.rstrip("/").removesuffix("/v1")
    if parts.scheme == "https":
        tls = tls or ssl.create_default_context()
    shown = f"{parts.scheme}://{parts.netloc}{base_path}"
    return Endpoint(shown, parts.hostname, port, base_path, tls if parts.scheme == "https" else None, key, headers)


def trust(ca: Path | None, *, insecure: bool) -> ssl.SSLContext | None:
    """Choose whom to trust of an https server; None: whom the machine trusts. Raises ConfigError for a broken file."""
    if insecure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    return context_trusting(ca, name="--ca")


def api_key(file: Path | None, environ: Mapping[str, str] = os.environ) -> str:
    """Read the key from a file, else from the environment; empty: none is sent. Raises ConfigError."""
    if file is None:
        return environ.get(KEY_VARIABLE, "").strip()
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"--key-file: {file} cannot be read: {reason_of(exc)}") from exc
