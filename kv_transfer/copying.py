"""Copies that are hashed on the way, without Python's lock.

Owns in what pieces: one that was just copied is in the core's own cache, where it is hashed at 62 GB/s; from memory it
is 24 (one core, AVX-512). NumPy lets go of the lock while it copies, which assigning to a memoryview does not: beside
that, the other of the two threads, the engine's or KV's, came to run after 6 ms, beside this after 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from kv_transfer.frames import Digest

Bytes = npt.NDArray[np.uint8]
PIECE_BYTES: Final = 128 << 10  # with its source a quarter of a usual second-level cache
_LEAST_BYTES: Final = 32 << 10  # below, letting go of the lock costs more than it gives


def gather_hashed(target: memoryview, rows: Bytes, ids: Sequence[int], digest: Digest) -> None:
    """Copy rows of a (count, bytes) array to `target`, back to back, and feed them to `digest`. Raises IndexError."""
    if ids and not 0 <= min(ids) <= max(ids) < len(rows):
        raise IndexError(f"rows {ids} of {len(rows)}")
    row_bytes = rows.shape[1]
    picked = np.array(ids, dtype=np.intp)
    step = max(1, PIECE_BYTES // row_bytes)
    for first in range(0, len(picked), step):
        some = picked[first : first + step]
        piece = target[first * row_bytes : (first + len(some)) * row_bytes]
        out = np.frombuffer(piece, dtype=np.uint8).reshape(len(some), row_bytes)
        rows.take(some, axis=0, out=out, mode="clip")  # other modes copy to a buffer first
        digest.update(piece)


def copy_hashed(target: memoryview, source: memoryview, digest: Digest) -> None:
    """Copy bytes and feed what was written to `digest`."""
    if source.nbytes < _LEAST_BYTES:
        target[:] = source
        digest.update(target)
    else:
        _copy_hashed(np.frombuffer(target, dtype=np.uint8), np.frombuffer(source, dtype=np.uint8), digest)


def land_hashed(rows: Sequence[memoryview], source: memoryview) -> int:
    """Copy a payload to the rows it is for; return its digest."""
    digest = Digest()
    payload = np.frombuffer(source, dtype=np.uint8)
    start = 0
    for row in rows:
        end = start + row.nbytes
        if row.nbytes < _LEAST_BYTES:
            row[:] = source[start:end]
            digest.update(row)
        else:
            _copy_hashed(np.frombuffer(row, dtype=np.uint8), payload[start:end], digest)
        start = end
    return int(digest.intdigest())


def _copy_hashed(target: Bytes, source: Bytes, digest: Digest) -> None:
    for start in range(0, len(source), PIECE_BYTES):
        piece = target[start : start + PIECE_BYTES]
        piece[:] = source[start : start + PIECE_BYTES]
        digest.update(piece.data)
