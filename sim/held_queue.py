"""The requests that the simulated router holds back, in the order in which they are let go.

Owns the order. Must not know why a request is held.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import accumulate

from core.types import HeldWork


class HeldQueue:
    """A queue by key, then by request."""

    def __init__(self) -> None:
        self._order: list[tuple[float, int]] = []  # all and only the held requests, with their keys, sorted
        self._held: dict[int, tuple[float, int]] = {}  # of the same requests: key, prompt tokens
        self._work: HeldWork | None = HeldWork()

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, request: int) -> bool:
        return request in self._held

    def put(self, request: int, *, key_s: float, prompt_tokens: int) -> None:
        """Hold a request that is not held."""
        self._held[request] = (key_s, prompt_tokens)
        insort(self._order, (key_s, request))
        self._work = None

    def take(self, request: int) -> None:
        """Let a held request go."""
        key_s, _ = self._held.pop(request)
        del self._order[bisect_left(self._order, (key_s, request))]
        self._work = None

    def first(self) -> int | None:
        """Name the request that goes first; None when nothing is held."""
        return self._order[0][1] if self._order else None

    def work(self) -> HeldWork:
        """Tell policies what is held."""
        if self._work is None:
            tokens = (self._held[request][1] for _, request in self._order)
            self._work = HeldWork(tuple([key_s for key_s, _ in self._order]), tuple(accumulate(tokens, initial=0)))
        return self._work
