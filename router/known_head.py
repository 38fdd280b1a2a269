"""The head of a request as a connection has seen it before: clients send the same one over and over but for its length.

Owns when a head may be known again, and the cutting of the bytes of a whole request by it. What a known head means was
told by the HTTP parser, which need not see it again. Sans I/O; must not know routes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, Self

MAX_BYTES: Final = 4 << 10  # of a head that is kept, one for each connection
_LENGTH: Final = b"content-length"
_HEAD_END: Final = b"\r\n\r\n"
_LINE_END: Final = b"\r\n"
_MAX_DIGITS: Final = 12
# What changes how a body is cut out of the bytes, or needs an answer before it comes.
_UNUSUAL: Final = frozenset((b"transfer-encoding", b"expect", b"upgrade"))


class Whole(NamedTuple):
    """A request that came as a whole."""

    length: bytes  # of its body, in digits
    body: bytes


class KnownHead(NamedTuple):
    """A head with a gap where the length of the body stands."""

    before: bytes
    after: bytes  # with the empty line
    path: str  # the client's
    served_as: str  # with the query
    method: str
    headers: dict[bytes, bytes]  # as parsed, the length among them

    @classmethod
    def of(
        cls, data: bytes, headers: Iterable[tuple[bytes, bytes]], *, method: str, path: str, served_as: str
    ) -> Self | None:
        """Keep the head that `data` begins with and that was parsed into `headers`; None where it must not be.

        It must hold one length, nothing else that says where the body ends, and that length in one place only.
        """
        end = data.find(_HEAD_END, 0, MAX_BYTES)
        names = [name for name, _ in headers]
        if end < 0 or names.count(_LENGTH) != 1 or not _UNUSUAL.isdisjoint(names):
            return None
        head = data[: end + len(_HEAD_END)]
        at = head.lower().find(_LENGTH)
        start = head.find(b":", at) + 1
        stop = head.find(_LINE_END, start)  # a head has a line end at its end at least
        start += len(head[start:stop]) - len(head[start:stop].lstrip(b" "))
        if head.lower().count(_LENGTH) != 1 or not _is_length(head[start:stop]):
            return None
        return cls(head[:start], head[stop:], path, served_as, method, dict(headers))

    def whole(self, data: bytes) -> Whole | None:
        """Cut `data` if it is exactly one request with this head; None if it is anything else."""
        if not data.startswith(self.before):
            return None
        start = len(self.before)
        stop = data.find(_LINE_END, start, start + _MAX_DIGITS + len(_LINE_END))
        if stop < start:  # found nowhere; see router.compiled about slices
            return None
        length = data[start:stop]
        if not _is_length(length) or not data.startswith(self.after, stop):
            return None
        body = data[stop + len(self.after) :]
        return Whole(length, body) if len(body) == int(length) else None


def _is_length(text: bytes) -> bool:
    return len(text) <= _MAX_DIGITS and text.isdigit()
