"""What a stream's client has been sent, as far as it takes to go on elsewhere, and the check that others make the same.

Owns the output tokens that the bytes were made of, and a digest of the bytes: the bytes themselves are not kept. Four
bytes for a token, and no parsing, but for streams with log probabilities. Must not know workers or connections.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Final

import orjson
from xxhash import xxh3_64

from cluster.codec import TOKEN_BYTES, tokens_from_pb
from core.engine import Resume
from core.errors import ResumeFailed

# Tokens may be ahead of the bytes made of them, never behind: what is made of them again is then longer than what was
# sent, and the rest of it is new.
_CREATED: Final = re.compile(rb'"created":\s*([0-9]{1,12})\b')
_DONE: Final = b"data: [DONE]\n\n"
_DATA: Final = b"data: "
_END: Final = b"\n\n"


class Transcript:
    """The output of one stream so far; fed as it passes, which costs a copy and a digest for each event."""

    __slots__ = ("_created", "_events", "_hash", "_num_bytes", "_sizes", "_tail", "_token_ids")

    def __init__(self, *, with_logprobs: bool = False) -> None:
        """Begin; log probabilities cannot be made again to the last digit, so they are left out of the comparison."""
        self._token_ids = bytearray()  # as cluster.codec encodes them
        self._sizes: array[int] | None = None  # of the groups; None: each token is one
        self._hash = xxh3_64()
        self._num_bytes = 0  # of what was hashed
        self._created = 0
        self._tail = b""  # the latest bytes that were sent
        self._events = _Events() if with_logprobs else None

    @property
    def num_tokens(self) -> int:
        """Count the output tokens that are known."""
        return len(self._token_ids) // TOKEN_BYTES

    @property
    def is_complete(self) -> bool:
        """Whether the client has the end of the stream."""
        return self._tail.endswith(_DONE)

    @property
    def is_within_event(self) -> bool:
        """Whether the client has the beginning of an event and not its end."""
        return bool(self._tail) and not self._tail.endswith(_END)

    def took(self, token_ids: bytes, group_sizes: Sequence[int]) -> None:
        """Note the tokens of what is sent next, as cluster.codec encodes them; see core.engine.Resume."""
        if self._sizes is not None or group_sizes:
            self._took_groups(len(token_ids) // TOKEN_BYTES, group_sizes)
        self._token_ids += token_ids

    def _took_groups(self, num_tokens: int, group_sizes: Sequence[int]) -> None:
        if self._sizes is None:
            self._sizes = array("I", repeat(1, self.num_tokens))
        self._sizes.extend(group_sizes or repeat(1, num_tokens))

    def sent(self, data: bytes) -> None:
        """Note bytes that go to the client."""
        if not self._tail:
            found = _CREATED.search(data)
            self._created = int(found[1]) if found else 0
        self._tail = data
        if self._events is None:
            self._hash.update(data)
            self._num_bytes += len(data)
            return
        for event in self._events.split(data):
            plain = without_logprobs(event)
            self._hash.update(plain)
            self._num_bytes += len(plain)

    def order(self) -> Resume:
        """Say what another worker must know to go on. Raises ResumeFailed when the client has half an event."""
        if self._events is not None and self._events.rest:
            raise ResumeFailed("a stream with log probabilities was cut within an event")
        return Resume(tokens_from_pb(bytes(self._token_ids)), self._sizes or (), self._created)

    def check(self) -> Check:
        """Begin to compare what another worker makes with what was sent."""
        return Check(self._hash.digest(), self._num_bytes, with_logprobs=self._events is not None)


class Check:
    """Compares the beginning of a stream that is made again with what was sent, and lets through what is new."""

    __slots__ = ("_digest", "_events", "_hash", "_left")

    def __init__(self, digest: bytes, num_bytes: int, *, with_logprobs: bool) -> None:
        self._digest = digest
        self._left = num_bytes
        self._hash = xxh3_64()
        self._events = _Events() if with_logprobs else None

    @property
    def is_done(self) -> bool:
        """Whether all that was sent has been made again."""
        return self._left == 0

    def new(self, data: bytes) -> bytes:
        """Take the next bytes; return those that the client does not have. Raises ResumeFailed when they differ."""
        if self._events is None:
            known = min(self._left, len(data))
            self._hash.update(data[:known])
            self._left -= known
            self._compare()
            return data[known:]
        events = self._events.split(data)
        for event in events:
            plain = without_logprobs(event)
            if len(plain) > self._left:
                raise _differs()
            self._hash.update(plain)
            self._left -= len(plain)
            if not self._left:
                break
        self._compare()
        return b"".join(events) + self._events.rest if not self._left else b""

    def _compare(self) -> None:
        if not self._left and self._hash.digest() != self._digest:
            raise _differs()


class _Events:
    """Cuts a stream into whole events; `rest` is the beginning of one."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = b""

    def split(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes; yield the events that they complete."""
        *whole, self.rest = (self.rest + data).split(_END)
        return (event + _END for event in whole)


def without_logprobs(event: bytes) -> bytes:
    """Write an event of a stream without the log probabilities of its choices; what is no such event stays."""
    try:
        body = orjson.loads(event.removeprefix(_DATA))
    except orjson.JSONDecodeError:
        return event
    if not isinstance(body, dict) or not isinstance(choices := body.get("choices"), list):
        return event
    for choice in choices:
        if isinstance(choice, dict):
            choice.pop("logprobs", None)
    return orjson.dumps(body)


def _differs() -> ResumeFailed:
    return ResumeFailed("the worker that took the stream over did not make again what was sent")
