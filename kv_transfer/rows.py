"""Rows of host memory that a frame is in or lands in: as views for sockets, as addresses for copies in one call.

Must not know which blocks they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np

from kv_transfer.vectored import Addresses


class Rows(Sequence[memoryview]):
    """Rows of equal size in their order; as a sequence, neighbours are one view."""

    def __init__(self, addresses: Addresses, row_bytes: int, make_views: Callable[[], list[memoryview]]) -> None:
        self.addresses = addresses
        self.row_bytes = row_bytes
        self._make_views = make_views
        self._views: list[memoryview] | None = None  # made when they are asked for first

    @overload
    def __getitem__(self, index: int) -> memoryview: ...

    @overload
    def __getitem__(self, index: slice) -> list[memoryview]: ...

    def __getitem__(self, index: int | slice) -> memoryview | list[memoryview]:
        return self._all()[index]

    def __len__(self) -> int:
        return len(self._all())

    def cut(self, size: int) -> Addresses | None:
        """Say where pieces of `size` bytes are; None when rows are no multiple of that."""
        if self.row_bytes == size:
            return self.addresses
        if self.row_bytes % size:
            return None
        within = np.arange(0, self.row_bytes, size, dtype=np.uint64)
        return (self.addresses[:, None] + within).reshape(-1)

    def _all(self) -> list[memoryview]:
        if self._views is None:
            self._views = self._make_views()
        return self._views
