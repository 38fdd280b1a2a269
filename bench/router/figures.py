"""What is measured: the tests, the figures taken from each, and their spread over rounds.

Owns definitions and arithmetic. Must not know how tests are run or how figures are shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.router.client import Load
from bench.router.window import Window

_US: Final = 1e6
_BUSY: Final = 0.95  # of the load side's core, from which on it and not the router bounds the figure
_DISTURBED: Final = 0.15  # cores used by others, from which on a window is named as disturbed
_WAITED: Final = 0.05  # share of the time in which the router could have run and did not


@dataclass(frozen=True, slots=True)
class Test:
    """One load on engines of one speed."""

    name: str
    load: Load
    itl_us: int = 0


UNARY: Final = (
    Test("u1", Load(1)),
    Test("u32", Load(32)),
    Test("u128", Load(128)),
    Test("u32-16k", Load(32, prompt_bytes=16_000)),
)
STREAMING: Final = (
    Test("s32-1ms", Load(32, max_tokens=64, stream=True), itl_us=1000),
    Test("s32-10ms", Load(32, max_tokens=64, stream=True), itl_us=10_000),
)
TESTS: Final = (*UNARY, *STREAMING)


@dataclass(frozen=True, slots=True)
class Taken:
    """One test of one target in one round."""

    target: str
    test: str
    round: int
    window: Window
    rss_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that is taken out of a window, given the window of the same load without a router."""

    label: str
    test: str
    of: Callable[[Window, Window], float]
    digits: int
    more_is_better: bool = False
    asked: str = ""  # of Baton


def _cpu_us(window: Window, count: int) -> float:
    return window.cores("router") * window.seconds * _US / count if count else 0.0


FIGURES: Final = (
    Figure("1 connection: added p50, ms", "u1", lambda w, d: w.latency.p50 - d.latency.p50, 3, asked="0.25"),
    Figure("1 connection: p99, ms", "u1", lambda w, _: w.latency.p99, 2),
    Figure("1 connection: CPU, us a request", "u1", lambda w, _: _cpu_us(w, w.requests), 0),
    Figure("32: requests/s", "u32", lambda w, _: w.requests_per_s, 0, True, "11,000"),
    Figure("32: p50, ms", "u32", lambda w, _: w.latency.p50, 2),
    Figure("32: p99, ms", "u32", lambda w, _: w.latency.p99, 1, asked="6"),
    Figure("32: CPU, us a request", "u32", lambda w, _: _cpu_us(w, w.requests), 0, asked="theirs"),
    Figure("128: requests/s", "u128", lambda w, _: w.requests_per_s, 0, True),
    Figure("128: p99, ms", "u128", lambda w, _: w.latency.p99, 1),
    Figure("128: CPU, us a request", "u128", lambda w, _: _cpu_us(w, w.requests), 0),
    Figure("32, 16 kB: requests/s", "u32-16k", lambda w, _: w.requests_per_s, 0, True, "9,000"),
    Figure("32, 16 kB: CPU, us a request", "u32-16k", lambda w, _: _cpu_us(w, w.requests), 0),
    Figure("1 ms a token: tokens/s", "s32-1ms", lambda w, _: w.tokens_per_s, 0, True, "32,000"),
    Figure("1 ms: relay p50, ms", "s32-1ms", lambda w, _: w.relay.p50, 2),
    Figure("1 ms: relay p99, ms", "s32-1ms", lambda w, _: w.relay.p99, 2, asked="1"),
    Figure("1 ms: gap p99, ms", "s32-1ms", lambda w, _: w.gap.p99, 2),
    Figure("1 ms: first token p99, ms", "s32-1ms", lambda w, _: w.ttft.p99, 1),
    Figure("1 ms: CPU, us a token", "s32-1ms", lambda w, _: _cpu_us(w, w.tokens), 1, asked="12"),
    Figure("10 ms: relay p50, ms", "s32-10ms", lambda w, _: w.relay.p50, 2),
    Figure("10 ms: relay p99, ms", "s32-10ms", lambda w, _: w.relay.p99, 2),
    Figure("10 ms: CPU, us a token", "s32-10ms", lambda w, _: _cpu_us(w, w.tokens), 1),
)


@dataclass(frozen=True, slots=True)
class Over:
    """A figure over all rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Over | None:
        """Take the spread of some values; None of none."""
        return cls(min(values), statistics.median(values), max(values)) if values else None


class Results:
    """All that was taken, by target, test and round."""

    def __init__(self, taken: Iterable[Taken]) -> None:
        self._taken: Mapping[tuple[str, str, int], Taken] = {(t.target, t.test, t.round): t for t in taken}
        self.targets = tuple(dict.fromkeys(target for target, _, _ in self._taken))
        self.num_rounds = len({index for _, _, index in self._taken})

    def values(self, figure: Figure, target: str, direct: str) -> dict[int, float]:
        """Give one figure of a target by round; rounds without a right answer are left out."""
        found = {}
        for index in range(self.num_rounds):
            taken, floor = (self._taken.get((name, figure.test, index)) for name in (target, direct))
            if taken is not None and floor is not None and taken.window.requests:
                found[index] = figure.of(taken.window, floor.window)
        return found

    def ratios(self, figure: Figure, target: str, base: str, direct: str) -> list[float]:
        """Divide a target's figure by that of `base`, round by round."""
        above, below = (self.values(figure, name, direct) for name in (target, base))
        return [above[index] / below[index] for index in above if below.get(index)]

    def rss_mb(self, target: str) -> float:
        """Give the most memory that a target had after any test."""
        return max((t.rss_mb for t in self._taken.values() if t.target == target), default=0.0)

    def num_requests(self, target: str) -> int:
        """Count the requests that a target answered in all windows."""
        return sum(t.window.requests for t in self._taken.values() if t.target == target)

    def remarks(self, direct: str) -> list[str]:
        """Name the windows that are not what they should be: with errors, bound by the load side, or disturbed."""
        tests = dict.fromkeys((target, test) for target, test, _ in self._taken)
        found = []
        for target, test in tests:
            windows = [t.window for t in self._taken.values() if (t.target, t.test) == (target, test)]
            faults = list(_faults(windows, has_router=target != direct))
            if faults:
                found.append(f"{test}, {target}: {'; '.join(faults)}")
        return found


def _faults(windows: Sequence[Window], *, has_router: bool) -> Iterator[str]:
    """Say what is wrong with the windows of one test and target."""
    errors = [w for w in windows if w.errors]
    if errors:
        yield f"{sum(w.errors for w in errors)} errors, the first: {errors[0].first_error[:160]!r}"
    bound = [w for w in windows if w.cores("client") + w.cores("mock") > _BUSY]
    if bound and has_router:
        yield f"client and engines filled their core in {len(bound)} of {len(windows)} rounds"
    waits = [w.times["router"].waited_share for w in windows if "router" in w.times]
    others = [w.other_cores for w in windows]
    if max(waits, default=0.0) > _WAITED or max(others) > _DISTURBED:
        waited = f", the router waited {min(waits):.0%} to {max(waits):.0%} for its core" if waits else ""
        yield f"others used {min(others):.2f} to {max(others):.2f} cores{waited}"
