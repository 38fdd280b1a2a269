"""What a session has produced and not yet sent, gathered per call.

Owns the joining of consecutive data into chunks and the count of unsent bytes. Must not know gRPC's transport, tasks
or workers.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster import codec
from cluster.pb import worker_pb2 as pb
from core.types import LegFacts


class Outbox:
    """Collects replies until `take` turns them into chunks: one per call, calls in order of their first data."""

    def __init__(self) -> None:
        self._pending: dict[int, _Pending] = {}  # all and only the calls with something unsent
        self.unsent_bytes = 0
        self.appended = 0  # grows with every addition: tells whether a pass of the loop brought anything

    def __bool__(self) -> bool:
        """Tell whether anything is unsent."""
        return bool(self._pending)

    def start(self, call_id: int, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        """Add status and headers of a reply."""
        pending = self._of(call_id)
        pending.status = status
        pending.headers = headers

    def body(self, call_id: int, data: bytes) -> None:
        """Add the next bytes of a reply."""
        self._of(call_id).parts.append(data)
        self.unsent_bytes += len(data)

    def tokens(self, call_id: int, token_ids: Sequence[int]) -> None:
        """Add the tokens that the next bytes of a reply are made of; they leave with those."""
        pending = self._of(call_id)
        pending.token_ids += codec.tokens_to_pb(token_ids)
        pending.group_sizes.append(len(token_ids))

    def facts(self, call_id: int, facts: LegFacts) -> None:
        """Add what was measured of a call; it leaves with the end of its reply."""
        self._of(call_id).facts = facts

    def end(self, call_id: int, error: str = "", message: str = "") -> None:
        """Add the end of a reply; with `error`, the name of a core error, it is incomplete."""
        pending = self._of(call_id)
        pending.last = True
        pending.error = error
        pending.message = message

    def drop(self, call_id: int) -> None:
        """Forget what is unsent of a call."""
        pending = self._pending.pop(call_id, None)
        if pending is not None:
            self.unsent_bytes -= sum(map(len, pending.parts))

    def take(self) -> list[pb.Chunk]:
        """Remove and return everything unsent."""
        pending, self._pending, self.unsent_bytes = self._pending, {}, 0
        return [entry.chunk(call_id) for call_id, entry in pending.items()]

    def _of(self, call_id: int) -> _Pending:
        self.appended += 1
        pending = self._pending.get(call_id)
        if pending is None:
            pending = self._pending[call_id] = _Pending()
        return pending


class _Pending:
    """The unsent part of one reply."""

    __slots__ = ("error", "facts", "group_sizes", "headers", "last", "message", "parts", "status", "token_ids")

    def __init__(self) -> None:
        self.status = 0
        self.headers: tuple[tuple[str, str], ...] = ()
        self.parts: list[bytes] = []
        self.last = False
        self.error = ""
        self.message = ""
        self.facts: LegFacts | None = None
        self.token_ids = b""
        self.group_sizes: list[int] = []

    def chunk(self, call_id: int) -> pb.Chunk:
        parts = self.parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        token_ids = self.token_ids
        group_sizes = self.group_sizes
        if len(group_sizes) * codec.TOKEN_BYTES == len(token_ids):  # each token by itself
            group_sizes = []
        if not self.status and not self.last:  # the common case: a token in mid-stream
            return pb.Chunk(call_id=call_id, data=data, token_ids=token_ids, group_sizes=group_sizes)
        return pb.Chunk(
            call_id=call_id,
            status=self.status,
            headers=codec.headers_to_pb(self.headers),
            data=data,
            last=self.last,
            error=self.error,
            error_message=self.message,
            facts=None if self.facts is None else codec.facts_to_pb(self.facts),
            token_ids=token_ids,
            group_sizes=group_sizes,
        )
