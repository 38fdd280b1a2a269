"""Counters and histograms that cost a fraction of a microsecond to feed.

Owns the arithmetic only; router.metrics gives it names and renders it. One thread feeds and reads, so nothing locks:
the relay loop feeds one per chunk of every stream.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterator

Labels = tuple[str, ...]


class Counter:
    """Numbers that only grow, by label values."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[Labels, int] = defaultdict(int)

    def add(self, *labels: str) -> None:
        """Count one."""
        self.values[labels] += 1


class Histogram:
    """Observations by bucket; a value equal to an edge lies below it, as Prometheus has it."""

    __slots__ = ("_counts", "_edges", "_sum")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._edges, value)] += 1
        self._sum += value

    @property
    def sum(self) -> float:
        """Add up all observations."""
        return self._sum

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Yield (upper edge, observations at or below it), +Inf last."""
        total = 0
        for edge, count in zip((*map(repr, self._edges), "+Inf"), self._counts, strict=True):
            total += count
            yield edge, total


class RecentRate:
    """How often something happened per second, over the last `window_s` whole seconds."""

    __slots__ = ("_seconds", "_window_s")

    def __init__(self, window_s: int) -> None:
        self._window_s = window_s
        self._seconds: deque[tuple[int, int]] = deque(maxlen=window_s + 1)  # (second, count), ascending

    def add(self, now_s: float) -> None:
        """Note one event."""
        second = int(now_s)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + 1)
        else:
            self._seconds.append((second, 1))

    def per_second(self, now_s: float) -> float:
        """Average over the window that ends at `now_s`."""
        oldest = now_s - self._window_s
        return sum(count for second, count in self._seconds if second >= oldest) / self._window_s
