"""The routes of the console: its page, which anybody may load, and its events, for who has a key.

Owns the headers that keep the page harmless. Must not decide who a key stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response

from core.errors import Overloaded
from router.console.feed import ConsoleFeed
from router.console.stream import EventStream
from router.errors import error_json

_FOLDER: Final = Path(__file__).parent / "page"
_FILES: Final = {
    "/console": ("console.html", "text/html; charset=utf-8"),
    "/console/console.css": ("console.css", "text/css; charset=utf-8"),
    "/console/console.js": ("console.js", "text/javascript; charset=utf-8"),
    "/console/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/console/explained.js": ("explained.js", "text/javascript; charset=utf-8"),
    "/console/icon.svg": ("icon.svg", "image/svg+xml"),
}
# Nothing from elsewhere, nothing inline, no frames: text of a request that slipped through could still not run.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def add_console(app: FastAPI, feed: ConsoleFeed, tenant_of: Callable[[Request], str | None]) -> None:
    """Serve the page and its events.

    `tenant_of` names the tenant that a key stands for: None for who sees all, nothing where nobody has keys, and then
    everybody sees all.
    """
    for path, (name, kind) in _FILES.items():
        _add_file(app, path, _FOLDER / name, kind)

    async def events(request: Request) -> Response:
        """Tell how things are, now and each second."""
        tenant = tenant_of(request) or None
        try:
            feed.check_room()
        except Overloaded as exc:
            body = error_json(str(exc), kind=exc.name, code=429)
            return Response(body, 429, {**HEADERS, "retry-after": "5"}, media_type="application/json")
        return EventStream(feed.watch(tenant), HEADERS)

    app.add_api_route("/console/events", events, include_in_schema=False)


def _add_file(app: FastAPI, path: str, file: Path, kind: str) -> None:
    content = file.read_bytes()

    async def send() -> Response:
        return Response(content, headers={**HEADERS, "cache-control": "no-cache"}, media_type=kind)

    app.add_api_route(path, send, methods=["GET", "HEAD"], name=file.name, include_in_schema=False)
