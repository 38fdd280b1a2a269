"""One question to an endpoint that is answered whole: models, counts of tokens, metrics.

Owns the wait for it. Must not know streams.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

import orjson

from bench.serving.connection import ConnectionPool
from bench.serving.endpoint import Endpoint
from core.errors import BatonError

ASK_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Document:
    """A complete answer."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case

    def json(self) -> dict[str, object]:
        """Read the body as an object; an empty one for what is none."""
        try:
            found = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}


class _Gathered:
    """Gathers an answer for who waits; implements bench.serving.connection.Answer."""

    def __init__(self) -> None:
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._status = 0
        self.whole: asyncio.Future[Document] = asyncio.get_running_loop().create_future()

    def header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1")] = value.decode("latin-1")

    def head(self, status: int) -> None:
        self._status = status

    def body(self, data: bytes, now_s: float) -> bool:
        self._parts.append(data)
        return True

    def ended(self, now_s: float) -> None:
        if not self.whole.done():
            self.whole.set_result(Document(self._status, b"".join(self._parts), self._headers))

    def failed(self, why: str) -> None:
        if not self.whole.done():
            self.whole.set_exception(BatonError(why))


async def ask(
    pool: ConnectionPool,
    endpoint: Endpoint,
    path: str,
    body: dict[str, object] | None = None,
    *,
    headers: dict[str, str] | None = None,
    timeout_s: float = ASK_S,
) -> Document:
    """Ask once, POST where there is a body; whatever status comes is an answer. Raises BatonError when none does."""
    gathered = _Gathered()
    pool.send(request_of(endpoint, path, body, headers), gathered, timeout_s)
    try:
        return await gathered.whole
    except BatonError as exc:
        raise BatonError(f"{endpoint.url}{path}: {exc}") from exc


def request_of(
    endpoint: Endpoint, path: str, body: dict[str, object] | None, headers: dict[str, str] | None = None
) -> bytes:
    """Make a whole request."""
    data = b"" if body is None else orjson.dumps(body)
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items()).encode("latin-1")
    head = endpoint.head("GET" if body is None else "POST", path)
    return b"%b%bcontent-length: %d\r\n\r\n%b" % (head, more, len(data), data)
