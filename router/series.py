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


class StageHistograms:
    """One histogram for each of some stages; a stage of no length costs next to nothing to count."""

    __slots__ = ("_counts", "_edges", "_edges_us", "_observations", "_stages", "_sums_us")

    def __init__(self, stages: tuple[str, ...], edges: tuple[float, ...]) -> None:
        self._stages = stages
        self._edges = edges  # in seconds
        self._edges_us = [round(edge * 1e6) for edge in edges]
        # By stage, of lengths above zero alone: observations by bucket, and their sum.
        self._counts = [[0] * (len(edges) + 1) for _ in stages]
        self._sums_us = [0] * len(stages)
        self._observations = 0

    def observe_us(self, lengths_us: tuple[int, ...]) -> None:
        """Count one observation of every stage, in their order."""
        self._observations += 1
        for at, length_us in enumerate(lengths_us):
            if length_us:
                self._counts[at][bisect_left(self._edges_us, length_us)] += 1
                self._sums_us[at] += length_us

    def cumulative(self) -> Iterator[tuple[str, float, list[tuple[str, int]]]]:
        """Yield (stage, sum in seconds, buckets as Histogram.cumulative has them)."""
        for stage, counts, sum_us in zip(self._stages, self._counts, self._sums_us, strict=True):
            total = self._observations - sum(counts)
            buckets = []
            for edge, count in zip((*map(repr, self._edges), "+Inf"), counts, strict=True):
                total += count
                buckets.append((edge, total))
            yield stage, sum_us / 1e6, buckets


class RecentShare:
    """How many of the events of the last `window_s` whole seconds were good ones."""

    __slots__ = ("_seconds",)

    def __init__(self, window_s: int) -> None:
        self._seconds: deque[list[int]] = deque(maxlen=window_s + 1)  # [second, good, all], seconds ascending

    def add(self, now_s: float, good: bool) -> None:
        """Note one event."""
        second = int(now_s)
        if not self._seconds or self._seconds[-1][0] < second:
            self._seconds.append([second, 0, 0])
        latest = self._seconds[-1]
        latest[1] += good
        latest[2] += 1

    def counts(self, now_s: float, window_s: int) -> tuple[int, int]:
        """Count (good events, all events) of the window that ends at `now_s`."""
        oldest, good, total = now_s - window_s, 0, 0
        for second, good_then, all_then in reversed(self._seconds):
            if second < oldest:
                break
            good += good_then
            total += all_then
        return good, total
