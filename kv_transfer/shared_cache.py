"""The KV cache of an engine in memory that other processes of its host can map, put there in place.

The engine allocates its cache itself and never learns of this: the pages under it are replaced by those of a memfd, at
the same addresses. Only pages that lie in the cache as a whole are: its first and last one may hold what the allocator
keeps beside it (malloc's header is in the first), and another thread could write there while they are copied. Blocks
that reach into such a page are not shared. Must not know blocks of which request lie where, nor sockets.

On close the cache gets private memory back, with its content: freed memory that is still a memfd would surprise an
allocator that gives it out again as zeros, and a forked child that writes to it. A process that ends needs none of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kv_transfer.staging import POPULATE_WRITE, SIZE_SEAL

logger = logging.getLogger(__name__)
OFFSET: Final = struct.Struct("<Q")
_PIECE_BYTES: Final = 64 << 20  # moved at a time: so much exists twice
_PAGE_BYTES: Final = mmap.PAGESIZE
_MAP_FIXED: Final = 0x10  # mmap(2)
_MREMAP_INTO: Final = 3  # mremap(2): MREMAP_MAYMOVE | MREMAP_FIXED
_FUTURE_WRITE_SEAL: Final = 0x10  # fcntl(2): F_SEAL_FUTURE_WRITE, Linux 5.1: our mapping is the last that can write
_FAILED: Final = ctypes.c_void_p(-1).value


@dataclass(frozen=True, slots=True)
class _Range:
    """Whole pages of the cache without a gap."""

    start: int  # address
    size: int
    offset: int  # in the memfd


@dataclass(frozen=True, slots=True)
class _Layer:
    """The blocks of one layer that are shared as a whole."""

    offset: int  # in the memfd, of block 0 if it were shared
    blocks: range


class SharedCache:
    """All and only blocks that lie in whole pages of the cache are shared, until `close`."""

    def __init__(self, layers: Sequence[memoryview], block_bytes: int) -> None:
        """Take the cache by layer; nobody may write it meanwhile. Raises OSError, with the cache as it was."""
        self._views = layers  # kept: what is not freed cannot be given out again
        self._block_bytes = block_bytes
        self._ranges = tuple(_whole_pages(layers))
        self._moved: list[_Range] = []  # all and only pieces that lie in the memfd
        self.size_bytes = sum(each.size for each in self._ranges)
        self.fd = os.memfd_create("baton-kv-cache", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.size_bytes)
            for piece in _pieces(self._ranges):
                _move_in(piece, self.fd)
                self._moved.append(piece)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SIZE_SEAL | fcntl.F_SEAL_GROW)
            with contextlib.suppress(OSError):  # an older kernel
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _FUTURE_WRITE_SEAL)
        except BaseException:
            self.close()
            raise
        self._layers = [self._layer(view) for view in layers]

    def has(self, layer: int, block_ids: Sequence[int]) -> bool:
        """Whether these blocks of a layer are shared."""
        blocks = self._layers[layer].blocks
        return bool(block_ids) and min(block_ids) in blocks and max(block_ids) in blocks

    def offsets(self, layers: range, block_ids: Sequence[int]) -> bytes:
        """Say where blocks lie in the memfd, layer by layer, each as `OFFSET` packs it."""
        ids = np.array(block_ids, dtype="<u8") * np.uint64(self._block_bytes)
        return b"".join((ids + np.uint64(self._layers[layer].offset)).tobytes() for layer in layers)

    def close(self) -> None:
        """Put the cache back into private memory, as it is; idempotent. Mappings of peers stay as they are."""
        if self.fd < 0:
            return
        for piece in self._moved:
            _move_out(piece)
        self._moved.clear()
        os.close(self.fd)
        self.fd = -1

    def _layer(self, view: memoryview) -> _Layer:
        start, size = _address(view), self._block_bytes
        home = next(
            (each for each in self._ranges if start < each.start + each.size and each.start < start + view.nbytes), None
        )
        if home is None:
            return _Layer(0, range(0))
        first = max(0, -(-(home.start - start) // size))
        end = min(view.nbytes, home.start + home.size - start) // size
        return _Layer((home.offset + start - home.start) % (1 << 64), range(first, end))


def _whole_pages(layers: Sequence[memoryview]) -> Iterator[_Range]:
    """Yield the pages that the layers fill; layers that touch each other count as one."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted((_address(view), _address(view) + view.nbytes) for view in layers):
        if spans and start <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    offset = 0
    for start, end in spans:
        first = -(-start // _PAGE_BYTES) * _PAGE_BYTES
        size = end // _PAGE_BYTES * _PAGE_BYTES - first
        if size > 0:
            yield _Range(first, size, offset)
            offset += size


def _pieces(ranges: Sequence[_Range]) -> Iterator[_Range]:
    for each in ranges:
        for at in range(0, each.size, _PIECE_BYTES):
            yield _Range(each.start + at, min(_PIECE_BYTES, each.size - at), each.offset + at)


def _move_in(piece: _Range, fd: int) -> None:
    """Copy pages to the memfd, which allocates them, and map it in their place."""
    content = memoryview((ctypes.c_ubyte * piece.size).from_address(piece.start)).cast("B")
    done = 0
    while done < piece.size:
        done += os.pwrite(fd, content[done:], piece.offset + done)
    _mmap(piece.start, piece.size, mmap.MAP_SHARED | _MAP_FIXED, fd, piece.offset)
    for advice in (mmap.MADV_HUGEPAGE, POPULATE_WRITE):  # huge where the system has them for shared memory
        _libc().madvise(ctypes.c_void_p(piece.start), ctypes.c_size_t(piece.size), advice)


def _move_out(piece: _Range) -> None:
    """Copy pages to private memory, and put that in their place in one step."""
    private = _mmap(0, piece.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    ctypes.memmove(private, piece.start, piece.size)
    libc = _libc()
    libc.mremap.restype = ctypes.c_void_p
    size = ctypes.c_size_t(piece.size)
    moved = libc.mremap(ctypes.c_void_p(private), size, size, _MREMAP_INTO, ctypes.c_void_p(piece.start))
    if moved != piece.start:
        raise _last_error("mremap")


def _mmap(address: int, size: int, flags: int, fd: int, offset: int) -> int:
    """Call mmap(2): Python's own takes no address. Raises OSError."""
    libc = _libc()
    libc.mmap.restype = ctypes.c_void_p
    mapped = libc.mmap(
        ctypes.c_void_p(address),
        ctypes.c_size_t(size),
        mmap.PROT_READ | mmap.PROT_WRITE,
        flags,
        fd,
        ctypes.c_long(offset),
    )
    if mapped is None or mapped == _FAILED:
        raise _last_error("mmap")
    return int(mapped)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _last_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, dtype=np.uint8).ctypes.data)
