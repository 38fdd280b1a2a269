"""Copies with their digest, in few calls that each let go of Python's lock.

Owns in what pieces: a whole frame at once. Each call that lets go of the lock must win it back from the other thread of
an engine; with calls for every 128 KiB, hashed while still in the core's own cache, the engine's thread waited longer
than it copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from kv_transfer.frames import Digest
from kv_transfer.rows import Rows
from kv_transfer.vectored import RowDigest, prepare

Bytes = npt.NDArray[np.uint8]
_LEAST_BYTES: Final = 128 << 10  # 10 us: below, letting go of the lock costs more than it gives


def gather_hashed(target: memoryview, rows: Bytes, ids: Sequence[int], digest: Digest) -> None:
    """Copy rows of a (count, bytes) array to `target`, back to back, and feed them to `digest`. Raises IndexError."""
    if not ids:
        return
    if not 0 <= min(ids) <= max(ids) < len(rows):
        raise IndexError(f"rows {ids} of {len(rows)}")
    out = np.frombuffer(target, dtype=np.uint8).reshape(len(ids), rows.shape[1])
    rows.take(np.array(ids, dtype=np.intp), axis=0, out=out, mode="clip")  # other modes copy to a buffer first
    digest.update(target)


def copy_hashed(target: memoryview, source: memoryview, digest: Digest) -> None:
    """Copy bytes and feed them to `digest`."""
    _copy(target, source)
    digest.update(source)


def land_rows(rows: Sequence[memoryview], sources: Rows) -> int:
    """Copy a payload that lies in pieces to the rows it is for, cut as they may be; return its digest.

    Each piece is read for it after it was copied, as it landed or where it came from: of a payload that is overwritten
    meanwhile the digest is not what the sender's was.
    """
    if isinstance(rows, Rows) and prepare() and (pieces := sources.cut(rows.row_bytes)) is not None:
        landed = RowDigest()
        landed.land(rows.addresses, pieces, rows.row_bytes)
        return landed.intdigest()
    digest = Digest()
    left = iter(sources)
    source = memoryview(b"")
    for row in rows:
        while row.nbytes:
            if not source.nbytes:
                source = next(left)
            size = min(row.nbytes, source.nbytes)
            _copy(row[:size], source[:size])
            digest.update(row[:size])
            row, source = row[size:], source[size:]
    return int(digest.intdigest())


def _copy(target: memoryview, source: memoryview) -> None:
    if source.nbytes < _LEAST_BYTES:
        target[:] = source
    else:
        np.frombuffer(target, dtype=np.uint8)[:] = np.frombuffer(source, dtype=np.uint8)
