"""Memory that KV waits in between the prefill engine's cache and the wire, allocated and touched once.

Owns one region in a memfd, so that an engine on the same host can read it, and who has which part of it. Taken by the
engine thread, given back by the KV thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

CHUNK_BYTES: Final = 64 << 10  # what the region is divided into
SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW  # who reads mapped memory that shrank dies of SIGBUS


def sealed_memory(name: str, size: int) -> int:
    """Allocate memory that can be mapped by other processes and never changes its size; return its descriptor.

    Every page is allocated at once: no page fault later, no SIGBUS when memory ends. Raises OSError.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SIZE_SEALS)
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
    """All and only segments that were taken and not given back are in use; first fit from where the last one ended."""

    def __init__(self, size_bytes: int) -> None:
        """Allocate and touch the region, rounded up to whole chunks. Raises MemoryError or OSError."""
        self._num_chunks = -(-size_bytes // CHUNK_BYTES)
        self.size_bytes = self._num_chunks * CHUNK_BYTES
        self.fd = sealed_memory("baton-kv-staging", self.size_bytes)
        try:
            self._map = mmap.mmap(self.fd, self.size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except BaseException:
            os.close(self.fd)
            raise
        self._view = memoryview(self._map)
        self._lock = threading.Lock()
        self._free = [(0, self._num_chunks)]  # (first chunk, count), in order, never adjacent
        self._next = 0  # chunk to look from
        self._used_chunks = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the chunks in use."""
        return self._used_chunks * CHUNK_BYTES

    @property
    def region(self) -> memoryview:
        """The whole region, for libraries that want to know it beforehand."""
        return self._view

    def take(self, size: int) -> Segment | None:
        """Take `size` bytes; None when no part that large is free."""
        count = max(1, -(-size // CHUNK_BYTES))
        with self._lock:
            place = self._place(count)
            if place is None:
                return None
            index, first = place
            start, length = self._free[index]
            parts = ((start, first - start), (first + count, start + length - first - count))
            self._free[index : index + 1] = [part for part in parts if part[1]]
            self._next = first + count
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
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self._view.release()
        with contextlib.suppress(BufferError):  # a segment's view is held: unmapped with the last of them
            self._map.close()

    def _place(self, count: int) -> tuple[int, int] | None:
        """Find where `count` chunks fit: (index of the free part, first chunk)."""
        wrapped: tuple[int, int] | None = None
        for index, (start, length) in enumerate(self._free):
            first = max(start, self._next)
            if first + count <= start + length:
                return index, first
            if wrapped is None and length >= count:
                wrapped = index, start
        return wrapped

    def _index_after(self, first: int) -> int:
        """Count the free parts before a chunk."""
        return bisect_left(self._free, (first, 0))
