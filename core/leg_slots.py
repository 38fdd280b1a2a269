"""A bound on the legs one role of a worker takes at a time, and the drain that takes no more.

Pure bookkeeping, from one event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import Overloaded, WorkerDraining


class LegSlots:
    """Counts running legs; refuses those beyond the bound and, once draining, all."""

    def __init__(self, role: str, *, max_legs: int) -> None:
        self._role = role
        self._max_legs = max_legs
        self._num_legs = 0
        self._draining = False

    @property
    def num_legs(self) -> int:
        """How many legs run or wait in the engine."""
        return self._num_legs

    def drain(self) -> None:
        """Take no new legs; those running go on."""
        self._draining = True

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold one slot. Raises WorkerDraining or Overloaded before any work."""
        if self._draining:
            raise WorkerDraining("the worker is draining")
        if self._num_legs >= self._max_legs:
            raise Overloaded(f"{self._num_legs} {self._role} legs outstanding")
        self._num_legs += 1
        try:
            yield
        finally:
            self._num_legs -= 1
