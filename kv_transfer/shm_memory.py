"""Memory that processes of one host share: whose it is, what is checked before it is read, which streams are live.

Knows nothing of sockets. The sender of KV owns two regions, its staging memory and a board with one word per live
stream; the receiver maps both once, for reading only. The sender clears a stream's word before it may write to what
the stream was reading, so a receiver that finds its word unchanged after a copy has copied what was sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Final

from core.errors import CorruptFrame, PeerMismatch, TransferAborted
from kv_transfer.staging import SIZE_SEALS, sealed_memory

WORD_BYTES: Final = 8
BOARD_BYTES: Final = 64 << 10
_BLOCK_BYTES: Final = 512  # unit of st_blocks, stat(2)

Identity = tuple[tuple[int, int], tuple[int, int]]  # device and inode of both regions: while mapped, of them alone


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

    def begin(self) -> Mark:
        """Make a stream live. Raises TransferAborted when too many are."""
        if not self._free:
            raise TransferAborted(f"more than {len(self._words)} streams are open at once")
        self._last += 1
        mark = Mark(self._free.pop(), self._last)
        self._words[mark.slot] = mark.number
        return mark

    def end(self, mark: Mark) -> None:
        """End a stream, once: from here on nothing that it reads counts."""
        if self.fd >= 0:
            self._words[mark.slot] = 0
            self._free.append(mark.slot)

    def close(self) -> None:
        """End every stream and give the memory back; idempotent."""
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

    def __init__(self, staging_fd: int, board_fd: int) -> None:
        """Check and map both; the descriptors stay the caller's. Raises PeerMismatch or OSError."""
        board = _map(board_fd, BOARD_BYTES)
        try:
            staging = _map(staging_fd, 1)
        except BaseException:
            board.close()
            raise
        self._maps = staging, board
        self._is_closed = False
        self._staging = memoryview(staging)
        self._words = memoryview(board).cast("Q")

    def read(self, offset: int, size: int) -> memoryview:
        """View staged bytes. Raises CorruptFrame when they lie outside, TransferAborted when all is unmapped."""
        if self._is_closed:
            raise TransferAborted("the sender is gone")
        if not 0 <= offset <= self._staging.nbytes - size:
            raise CorruptFrame(f"{size} bytes at {offset} lie outside the sender's memory")
        return self._staging[offset : offset + size]

    def is_live(self, mark: Mark) -> bool:
        """Tell whether what was read for a stream until now is what was sent."""
        return not self._is_closed and mark.slot < len(self._words) and self._words[mark.slot] == mark.number

    def close(self) -> None:
        """Unmap; views that are still held keep the mapping alive."""
        self._is_closed = True
        for view in (self._staging, self._words):
            view.release()
        for region in self._maps:
            with contextlib.suppress(BufferError):
                region.close()


def identity_of(staging_fd: int, board_fd: int) -> Identity:
    """Name a sender's memory, however often its descriptors are passed."""
    staging, board = os.fstat(staging_fd), os.fstat(board_fd)
    return (staging.st_dev, staging.st_ino), (board.st_dev, board.st_ino)


def _map(fd: int, min_bytes: int) -> mmap.mmap:
    """Map a whole region; what could shrink, or is not allocated and would be at our cost, is refused."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as exc:
        raise PeerMismatch("what the peer passed is not shared memory") from exc
    if seals & SIZE_SEALS != SIZE_SEALS:
        raise PeerMismatch("the peer's memory is not sealed against changes of its size")
    status = os.fstat(fd)
    if status.st_size < min_bytes or status.st_blocks * _BLOCK_BYTES < status.st_size:
        raise PeerMismatch(f"the peer's memory is too small or not allocated ({status.st_size} bytes)")
    return mmap.mmap(fd, status.st_size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
