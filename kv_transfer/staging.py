"""Memory that KV waits in between the prefill engine's cache and the wire, allocated when it is needed first.

Owns one region in a memfd, so that an engine on the same host can read it, and who has which part of it. Taken by the
engine thread, given back by the KV thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import threading
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

logger = logging.getLogger(__name__)
CHUNK_BYTES: Final = 64 << 10  # what the region is divided into
GROWTH_BYTES: Final = 16 << 20  # allocated at a time: 9 ms
SIZE_SEAL: Final = fcntl.F_SEAL_SHRINK  # who reads mapped memory that shrank dies of SIGBUS
POPULATE_WRITE: Final = 23  # madvise(2): MADVPOPULATE_WRITE, Linux 5.14


def sealed_memory(name: str, size: int) -> int:
    """Allocate memory that can be mapped by other processes and never becomes smaller; return its descriptor.

    Every page is allocated at once: no page fault later, no SIGBUS when memory ends. Raises OSError.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SIZE_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the region; `view` is exactly what was asked for."""

    offset: int
    view: memoryview
    num_chunks: int


class StagingPool:
    """All and only segments that were taken and not given back are in use.

    The lowest place that is free is taken: what was read a moment ago is still in the processor's cache, and memory is
    only ever allocated up to what was in use at once.
    """

    def __init__(self, size_bytes: int) -> None:
        """Reserve addresses for `size_bytes`, rounded up to whole chunks; memory is allocated as it is taken.

        Raises OSError.
        """
        self._num_chunks = -(-size_bytes // CHUNK_BYTES)
        self.size_bytes = self._num_chunks * CHUNK_BYTES
        self.fd = os.memfd_create("baton-kv-staging", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            self._map = _mapped_empty(self.fd, self.size_bytes)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SIZE_SEAL)
        except BaseException:
            os.close(self.fd)
            raise
        self._view = memoryview(self._map)
        self._lock = threading.Lock()
        self._free = [(0, self._num_chunks)]  # (first chunk, count), in order, never adjacent
        self._used_chunks = 0
        self.allocated_bytes = 0  # from the start of the region

    @property
    def used_bytes(self) -> int:
        """Bytes of the chunks in use."""
        return self._used_chunks * CHUNK_BYTES

    @property
    def region(self) -> memoryview:
        """The whole region, for libraries that want to know it beforehand."""
        return self._view

    def allocate_all(self) -> bool:
        """Allocate the whole region, for whoever must know of all memory beforehand; whether it could be had."""
        with self._lock:
            return self._allocate(self.size_bytes)

    def take(self, size: int) -> Segment | None:
        """Take `size` bytes; None when no part that large is free, or the system has no memory left."""
        count = max(1, -(-size // CHUNK_BYTES))
        with self._lock:
            index = next((i for i, (_, length) in enumerate(self._free) if length >= count), None)
            if index is None:
                return None
            first, length = self._free[index]
            if not self._allocate((first + count) * CHUNK_BYTES):
                return None
            self._free[index : index + 1] = [(first + count, length - count)] if length > count else []
            self._used_chunks += count
        offset = first * CHUNK_BYTES
        return Segment(offset, self._view[offset : offset + size], count)

    def give_back(self, segment: Segment) -> None:
        """Take a segment back; once only. Its view must not be written any more."""
        first, count = segment.offset // CHUNK_BYTES, segment.num_chunks
        with self._lock:
            index = self._index_after(first)
            before = self._free[index - 1] if index else None
            after = self._free[index] if index < len(self._free) else None
            start, end, low, high = first, first + count, index, index
            if before is not None and before[0] + before[1] == first:
                start, low = before[0], index - 1
            if after is not None and after[0] == end:
                end, high = after[0] + after[1], index + 1
            self._free[low:high] = [(start, end - start)]
            self._used_chunks -= count

    def close(self) -> None:
        """Give the memory back to the system; views that are still held keep the mapping alive."""
        with self._lock:
            if self.fd < 0:
                return
            os.close(self.fd)
            self.fd = -1
        self._view.release()
        with contextlib.suppress(BufferError):  # a segment's view is held: unmapped with the last of them
            self._map.close()

    def _allocate(self, end: int) -> bool:
        """Have the memory up to `end` allocated and mapped; whether it could be had."""
        if end <= self.allocated_bytes:
            return True
        if self.fd < 0:
            return False
        start = self.allocated_bytes
        size = min(-(-(end - start) // GROWTH_BYTES) * GROWTH_BYTES, self.size_bytes - start)
        try:
            os.posix_fallocate(self.fd, start, size)
        except OSError as exc:
            logger.warning("no memory for %d bytes of KV more: %s", size, exc.strerror)
            return False
        with contextlib.suppress(OSError):  # an old kernel: each page is mapped when it is first written
            self._map.madvise(POPULATE_WRITE, start, size)
        self.allocated_bytes += size
        return True

    def _index_after(self, first: int) -> int:
        """Count the free parts before a chunk."""
        return bisect_left(self._free, (first, 0))


def _mapped_empty(fd: int, size: int) -> mmap.mmap:
    """Map `size` bytes of a file that has none yet and will grow: Python maps no more than a file has."""
    os.ftruncate(fd, size)
    region = mmap.mmap(fd, size, flags=mmap.MAP_SHARED)
    os.ftruncate(fd, 0)
    return region
