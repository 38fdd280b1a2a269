"""The store through which two ranks find each other, kept at both ends of one authenticated link.

Owns its entries and whoever waits for one. A stranger can neither read nor write it, as anyone can torch's TCPStore,
and it is gone with the link. Importing this module imports torch.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from torch.distributed import Store

from core.errors import CorruptFrame

_KEY: Final = struct.Struct("<H")  # bytes of the key, which follows; the rest is the value
MAX_ENTRIES: Final = 256  # a peer that sets more ends the link


class LinkStore(Store):  # type: ignore[misc]
    """Entries of this end and of the peer; used by torch's C++ from any thread."""

    def __init__(self, publish: Callable[[bytes], None], timeout: timedelta) -> None:
        """`publish` sends an entry of ours to the peer, which `take`s it; called from any thread."""
        super().__init__()
        self._publish: Callable[[bytes], None] | None = publish
        self._timeout = timeout
        self._entries: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._has_ended = False

    def take(self, message: bytes) -> None:
        """Note an entry of the peer's. Raises CorruptFrame."""
        if len(message) < _KEY.size or len(self._entries) >= MAX_ENTRIES:
            raise CorruptFrame("the peer's store does not speak as ours does")
        (size,) = _KEY.unpack_from(message)
        key = message[_KEY.size : _KEY.size + size].decode(errors="replace")
        with self._changed:
            self._entries[key] = message[_KEY.size + size :]
            self._changed.notify_all()

    def seal(self) -> None:
        """Keep later entries to ourselves: the group is made, and the link carries frames from here on."""
        self._publish = None

    def end(self) -> None:
        """Wake whoever waits; there is nothing to wait for any more. Idempotent."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    # What torch calls

    def set(self, key: str, value: bytes | str) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        with self._changed:
            self._entries[key] = data
            self._changed.notify_all()
        name = key.encode()
        if self._publish is not None:
            self._publish(_KEY.pack(len(name)) + name + data)

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._entries[key]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        seconds = (timeout or self._timeout).total_seconds()
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended or self.check(keys), min(seconds, threading.TIMEOUT_MAX))
            if not self.check(keys):
                raise RuntimeError("the peer did not come to the group")

    def check(self, keys: Sequence[str]) -> bool:
        return all(key in self._entries for key in keys)

    def add(self, key: str, amount: int) -> int:
        """Count at this end alone: no group of two counts what both must see."""
        with self._changed:
            total = int(self._entries.get(key, b"0")) + amount
            self._entries[key] = str(total).encode()
        return total

    def delete_key(self, key: str) -> bool:
        with self._changed:
            return self._entries.pop(key, None) is not None
