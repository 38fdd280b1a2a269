"""What `baton explain` answers: the explanation of one request by the router that served it, as text.

Owns how the router is found and asked. Must not know wording (router.explain_text).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from cluster.front import Front, front_of
from cluster.router_probe import ask_explanation
from cluster.state import StateDir
from core.errors import BatonError, ConfigError, NotRunning
from core.tls_files import context_trusting
from router.explain_text import explanation_lines, explanation_of


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `explain`."""
    parser.add_argument("request_id", metavar="ID", help="the x-request-id of its answer")
    parser.add_argument("--url", help="the router that served it (default: the one that runs from this checkout)")
    parser.add_argument("--ca", metavar="FILE", type=Path, help="whom to trust of an https router: certificates, PEM")
    parser.add_argument("--key-file", metavar="FILE", type=Path, help="file with the API key of the request's tenant")


def run(options: argparse.Namespace) -> int:
    """Do `baton explain`; return 0. Raises what `answer` does."""
    sys.stdout.write(answer(options) + "\n")
    return 0


def answer(options: argparse.Namespace) -> str:
    """Explain `request_id`, in lines for people or `as_json`.

    Raises NotRunning when no router is named and none runs, ConfigError for a file that cannot be read; BatonError for
    what the router does not explain.
    """
    front = _front(options)
    found = ask_explanation(front, options.request_id)
    if options.as_json:
        return json.dumps(json.loads(found), indent=2, ensure_ascii=False)
    try:
        return "\n".join(explanation_lines(explanation_of(found)))
    except ValueError as exc:
        raise BatonError(f"the router at {front.url} answers in another form than this version reads: {exc}") from exc


def _front(options: argparse.Namespace) -> Front:
    """Reach the router that is named, else the one that runs from this checkout; what is given by a flag holds."""
    front = _running_front() if options.url is None else Front(options.url)
    return Front(
        front.url, context_trusting(options.ca, name="--ca") or front.tls, _key_in(options.key_file) or front.key
    )


def _running_front() -> Front:
    record = StateDir.find(os.environ).read()
    if record is None:
        raise NotRunning("nothing runs from this checkout; name the router with --url http://HOST:PORT")
    if not record.url:
        raise NotRunning("what was started from this checkout does not serve yet; see `baton status`")
    return front_of(record.url, Path(record.run_dir))


def _key_in(path: Path | None) -> str:
    try:
        return "" if path is None else path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as exc:
        why = getattr(exc, "strerror", None) or "it is no text"
        raise ConfigError(f"--key-file: {path} cannot be read: {why}") from exc
