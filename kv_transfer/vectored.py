"""Copies and digests of many rows in one call each, which lets go of Python's lock once.

xxhash keeps the lock for rows under 100,000 bytes, and Python takes some microseconds a row: an engine's thread and its
KV thread would wait for each other as long as a frame takes. So the loop over rows is compiled here, and calls the very
xxh3 that the library of that name brings. Rows are addresses: callers see to it that they are mapped. Must not know
what rows are of.

What lands goes past the processor's cache, 4 KiB at a time, and the digest is then made of the source, which is in the
core's own cache by then: 11.7 GB/s with its digest on one core, where memmove alone has 11.5, and memmove with a digest
of what it wrote 8.5 (scattered rows of 64 KiB, out of memory that another process shares).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash._xxhash

Addresses = npt.NDArray[np.uint64]
_SIZE: Final = ctypes.c_size_t
_POINTER: Final = ctypes.c_void_p
_LINE_BYTES: Final = 64  # of the processor's cache: rows that are not made of whole ones are copied by memmove
_WORD_BYTES: Final = 32
_PIECE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class _Library:
    """xxh3 as the library exports it, and the loops compiled around it."""

    create: Callable[[], int]
    free: Callable[[int], object]
    reset: Callable[[int], object]
    digest: Callable[[int], int]
    feed: Callable[[int, Addresses, int], None]
    land: Callable[[int, Addresses, Addresses, int], None]


@functools.cache
def prepare() -> bool:
    """Compile the loops, a third of a second, once; whether it could be done: rows are worthless otherwise."""
    try:
        _library()
    except (AttributeError, ImportError, OSError):
        return False
    return True


class RowDigest:
    """The xxh3 of rows, fed in order; equal to that of the same bytes back to back."""

    def __init__(self) -> None:
        self._library = _library()
        self._state = self._library.create()
        self._library.reset(self._state)

    def feed(self, rows: Addresses, row_bytes: int) -> None:
        """Read rows of equal size."""
        self._library.feed(self._state, rows, row_bytes)

    def intdigest(self) -> int:
        """Return the digest of all that was fed."""
        return self._library.digest(self._state)

    def land(self, rows: Addresses, sources: Addresses, row_bytes: int) -> None:
        """Copy to rows of equal size, reading each source again after it. Raises ValueError unless each row has one."""
        if rows.size != sources.size:
            raise ValueError(f"{rows.size} rows of {sources.size} sources")
        self._library.land(self._state, rows, sources, row_bytes)

    def __del__(self) -> None:
        self._library.free(self._state)


@functools.cache
def _library() -> _Library:
    import numba

    # What takes nanoseconds keeps Python's lock: to win it back takes 100 us when the other thread wants it too.
    xxh3, short, libc = ctypes.CDLL(xxhash._xxhash.__file__), ctypes.PyDLL(xxhash._xxhash.__file__), ctypes.CDLL(None)
    update = _typed(xxh3.XXH3_64bits_update, ctypes.c_int, _POINTER, _POINTER, _SIZE)
    move = _typed(libc.memmove, _POINTER, _POINTER, _POINTER, _SIZE)

    @numba.njit("void(uint64, uint64[::1], uint64)", nogil=True)  # type: ignore[untyped-decorator]
    def feed(state: int, rows: Addresses, row_bytes: int) -> None:
        for index in range(rows.size):
            update(state, rows[index], row_bytes)

    stream, fence = _stores()

    @numba.njit("void(uint64, uint64[::1], uint64[::1], uint64)", nogil=True)  # type: ignore[untyped-decorator]
    def land(state: int, rows: Addresses, sources: Addresses, row_bytes: int) -> None:
        for index in range(rows.size):
            whole_lines = rows[index] % _LINE_BYTES == 0 and row_bytes % _LINE_BYTES == 0
            for start in range(0, row_bytes, _PIECE_BYTES):
                row, source = rows[index] + np.uint64(start), sources[index] + np.uint64(start)
                size = min(np.uint64(_PIECE_BYTES), row_bytes - np.uint64(start))
                if whole_lines:
                    for at in range(0, size, _WORD_BYTES):
                        stream(row + np.uint64(at), source + np.uint64(at))
                else:
                    move(row, source, size)
                update(state, source, size)
        fence()  # what went past the cache is seen before whatever this thread writes next

    return _Library(
        create=_typed(short.XXH3_createState, _POINTER),
        free=_typed(short.XXH3_freeState, ctypes.c_int, _POINTER),
        reset=_typed(short.XXH3_64bits_reset, ctypes.c_int, _POINTER),
        digest=_typed(short.XXH3_64bits_digest, ctypes.c_uint64, _POINTER),
        feed=feed,
        land=land,
    )


def _stores() -> tuple[Any, Any]:
    """Make what numba lacks: a copy of _WORD_BYTES past the cache, to an address that they divide, and a fence."""
    from llvmlite import ir
    from numba.core import types
    from numba.extending import intrinsic

    word = ir.VectorType(ir.IntType(64), _WORD_BYTES // 8).as_pointer()

    @intrinsic  # type: ignore[untyped-decorator]
    def stream(_: Any, row: Any, source: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            target, origin = (builder.inttoptr(address, word) for address in arguments)
            store = builder.store(builder.load(origin, align=1), target, align=_WORD_BYTES)
            hint = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            store.set_metadata("nontemporal", hint)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), emit

    @intrinsic  # type: ignore[untyped-decorator]
    def fence(_: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.fence("seq_cst")
            return context.get_dummy_value()

        return types.void(), emit

    return stream, fence


def _typed(function: Any, result: Any, *arguments: Any) -> Any:
    function.restype, function.argtypes = result, arguments
    return function
