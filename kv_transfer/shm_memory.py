"""Memory that processes of one host share: whose it is, what is checked before it is read, which streams are live.

Knows nothing of sockets. The sender of KV owns its staging memory, a board with one word per live stream, and perhaps a
KV cache that is shared; the receiver maps each once, for reading only. The sender clears a stream's word before it may
write to what the stream was reading, so a receiver that finds its word unchanged after a copy has copied what was sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from core.errors import CorruptFrame, PeerMismatch, TransferAborted
from kv_transfer.rows import Rows
from kv_transfer.staging import SIZE_SEAL, sealed_memory
from kv_transfer.vectored import Addresses

STAGING, CACHE = 0, 1  # the sender's memories
WORD_BYTES: Final = 8
BOARD_BYTES: Final = 64 << 10
_BLOCK_BYTES: Final = 512  # unit of st_blocks, stat(2)

Identity = tuple[tuple[int, int], ...]  # device and inode of each region: while mapped, of them alone


@dataclass(frozen=True, slots=True)
class Mark:
    """A stream's word on the board: it is live as long as `slot` holds `number`."""

    slot: int
    number: int  # from 1, never used twice by one board


class Board:
    """The sender's board. All and only slots of `_free` hold 0."""

    def __init__(self) -> None:
        """Allocate it. Raises OSError."""
        self.fd = sealed_memory("baton-kv-streams", BOARD_BYTES)
        self._map = mmap.mmap(self.fd, BOARD_BYTES)
        self._words = memoryview(self._map).cast("Q")  # one store per word, never torn
        self._free = list(range(len(self._words)))
        self._last = 0
        self._lock = threading.Lock()  # over the words

    def begin(self) -> Mark:
        """Make a stream live. Raises TransferAborted when too many are."""
        if not self._free:
            raise TransferAborted(f"more than {len(self._words)} streams are open at once")
        with self._lock:
            self._last += 1
            mark = Mark(self._free.pop(), self._last)
            self._words[mark.slot] = mark.number
        return mark

    def end(self, mark: Mark) -> None:
        """End a stream, once: from here on nothing that it reads counts."""
        self.revoke(mark)
        if self.fd >= 0:
            self._free.append(mark.slot)

    def revoke(self, mark: Mark) -> None:
        """Have nothing count that a stream reads from here on; from any thread."""
        with self._lock:
            if self.fd >= 0 and self._words[mark.slot] == mark.number:
                self._words[mark.slot] = 0

    def close(self) -> None:
        """End every stream and give the memory back; idempotent."""
        with self._lock:
            if self.fd < 0:
                return
            os.close(self.fd)
            self.fd = -1
            for slot in range(len(self._words)):
                self._words[slot] = 0
            self._words.release()
            self._map.close()


class PeerMemory:
    """The regions of one sender, mapped for reading."""

    def __init__(self, staging_fd: int, board_fd: int, cache_fd: int | None = None) -> None:
        """Check and map each; the descriptors stay the caller's. Raises PeerMismatch or OSError."""
        with contextlib.ExitStack() as undo:
            self._board = _Region(board_fd, BOARD_BYTES)
            undo.callback(self._board.close)
            self._staging = _Region(staging_fd)
            undo.callback(self._staging.close)
            # Gigabytes: each page is mapped when it is first read, 16 at a time.
            self._cache = _Region(cache_fd, populate=False)
            undo.callback(self._cache.close)
            self._staging_fd = os.dup(staging_fd)  # the sender allocates more of it as it needs it
            undo.pop_all()
        self._is_closed = False
        self._words = self._board.view.cast("Q")

    def read(self, memory: int, offsets: Addresses, size: int) -> Rows:
        """View pieces of `size` bytes each in STAGING or CACHE.

        Raises CorruptFrame when they lie outside, TransferAborted when all is unmapped, PeerMismatch or OSError when
        more of the sender's memory cannot be mapped.
        """
        if self._is_closed:
            raise TransferAborted("the sender is gone")
        last = int(offsets.max())
        region = self._cache if memory == CACHE else self._staging
        if memory == STAGING and region.view.nbytes < last + size <= os.fstat(self._staging_fd).st_size:
            region = _Region(self._staging_fd)
            self._staging.close()
            self._staging = region
        if last + size > region.view.nbytes:
            raise CorruptFrame(f"{size} bytes at {last} lie outside the sender's memory")
        view = region.view
        return Rows(
            offsets + np.uint64(region.address), size, lambda: [view[at : at + size] for at in offsets.tolist()]
        )

    def is_live(self, mark: Mark) -> bool:
        """Tell whether what was read for a stream until now is what was sent."""
        return not self._is_closed and mark.slot < len(self._words) and self._words[mark.slot] == mark.number

    def close(self) -> None:
        """Unmap; views that are still held keep the mapping alive."""
        if self._is_closed:
            return
        self._is_closed = True
        self._words.release()
        os.close(self._staging_fd)
        self._staging.close()
        self._board.close()
        self._cache.close()


class _Region:
    """All of a memory that another process has passed, as it is now, mapped for reading."""

    def __init__(self, fd: int | None, min_bytes: int = 0, *, populate: bool = True) -> None:
        """Check and map it; what is not allocated would be at our cost. None is empty.

        Raises PeerMismatch or OSError.
        """
        self._map: mmap.mmap | None = None
        self.view, self.address = memoryview(b""), 0
        if fd is None:
            return
        _check_sealed(fd)
        status = os.fstat(fd)
        if status.st_size < min_bytes or status.st_blocks * _BLOCK_BYTES < status.st_size:
            raise PeerMismatch(f"the peer's memory is too small or not allocated ({status.st_size} bytes)")
        if status.st_size:
            flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
            self._map = mmap.mmap(fd, status.st_size, flags=flags, prot=mmap.PROT_READ)
            self.view = memoryview(self._map)
            self.address = int(np.frombuffer(self.view, dtype=np.uint8).ctypes.data)

    def close(self) -> None:
        """Unmap; views that are still held keep the mapping alive."""
        self.view.release()
        if self._map is not None:
            with contextlib.suppress(BufferError):
                self._map.close()


def identity_of(fds: Sequence[int]) -> Identity:
    """Name a sender's memory, however often its descriptors are passed."""
    return tuple((status.st_dev, status.st_ino) for status in map(os.fstat, fds))


def _check_sealed(fd: int) -> None:
    """Raises PeerMismatch unless the memory can never shrink: who reads what has shrunk dies of SIGBUS."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as exc:
        raise PeerMismatch("what the peer passed is not shared memory") from exc
    if not seals & SIZE_SEAL:
        raise PeerMismatch("the peer's memory is not sealed against shrinking")
