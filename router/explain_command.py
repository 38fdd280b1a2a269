"""What `baton explain` answers: the explanation of one request by the router that served it, as text.

Owns how the router is found and asked. Must not know wording (router.explain_text) or print.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
from pathlib import Path

from cluster.router_probe import ask_explanation
from cluster.state import StateDir
from core.errors import BatonError, ConfigError
from core.tls_files import load_authority
from router.explain_text import explanation_lines, explanation_of


def answer(options: argparse.Namespace) -> str:
    """Explain `request_id`, in lines for people or `as_json`.

    Raises ConfigError when no router is named and none runs, or a file cannot be read; BatonError for what the
    router does not explain.
    """
    url = _running_url() if options.url is None else options.url
    found = ask_explanation(url, options.request_id, key=_key_in(options.key_file), tls=_trusting(options.ca))
    if options.as_json:
        return json.dumps(json.loads(found), indent=2, ensure_ascii=False)
    try:
        return "\n".join(explanation_lines(explanation_of(found)))
    except ValueError as exc:
        raise BatonError(f"the router at {url} answers in another form than this version reads: {exc}") from exc


def _running_url() -> str:
    record = StateDir.find(os.environ).read()
    if record is None or not record.url:
        raise ConfigError("nothing runs from this checkout; name the router with --url http://HOST:PORT")
    return record.url


def _trusting(ca: Path | None) -> ssl.SSLContext | None:
    """Make a context that trusts the certificates in `ca` alone; None: what the machine trusts."""
    if ca is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_authority(context, ca, name="--ca")
    return context


def _key_in(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"--key-file: {path} cannot be read: {exc}") from exc
