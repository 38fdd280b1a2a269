"""How messages travel between router and worker: four bytes of length, big-endian, then the message.

An empty message is a heart-beat. Owns the framing and the numbers both ends agree on. Sans I/O; must not know what a
message holds.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from core.errors import WorkerError

DEFAULT_MAX_BODY_BYTES: Final = 128 << 20  # of one request
MAX_MESSAGE_BYTES: Final = 1 << 30  # of one frame from a worker, which the limit on unsent bytes keeps far below
ENVELOPE_BYTES: Final = 1 << 20  # headers and ids around the largest body

HEARTBEAT_S: Final = 1.0  # neither end is silent for longer
SILENCE_S: Final = 3.0  # an end gives the other up that was silent for this long
BUSY_HEARTBEAT_S: Final = 0.25  # a worker that has calls is not silent for longer
BUSY_SILENCE_S: Final = 1.0  # a router gives a worker up that has calls and was silent for this long: it is frozen

HEARTBEAT: Final = bytes(4)
_LENGTH: Final = Struct(">I")
_LENGTH_BYTES: Final = _LENGTH.size


def length_of(message: bytes) -> bytes:
    """Write what goes before a message."""
    return _LENGTH.pack(len(message))


class MessageReader:
    """Cuts the bytes of a connection into messages, however they were split on the way."""

    __slots__ = ("_max_bytes", "_needed", "_rest")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()  # the beginning of a message
        self._needed = 0  # bytes that `_rest` must have before it is worth a look

    def feed(self, data: bytes) -> list[bytes]:
        """Take what arrived and return the messages it completes, heart-beats left out.

        A length beyond the limit is refused before anything is kept for it. Raises WorkerError; the connection is then
        of no use.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        messages = []
        start, end = 0, len(data)
        self._needed = _LENGTH_BYTES
        while end - start >= _LENGTH_BYTES:
            (size,) = _LENGTH.unpack_from(data, start)
            if size > self._max_bytes:
                raise WorkerError(f"a message of {size} bytes is announced, the limit is {self._max_bytes}")
            stop = start + _LENGTH_BYTES + size
            if stop > end:
                self._needed = _LENGTH_BYTES + size
                break
            if size:
                messages.append(data[start + _LENGTH_BYTES : stop])
            start = stop
        if start < end:
            self._rest += data[start:] if start else data
        return messages
