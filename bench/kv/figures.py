"""What is made of the measurements: medians over rounds, ratios within a round, and what was asked.

Owns definitions and arithmetic. Must not know how anything was measured or how it is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from bench.kv.cache import LAYERS
from bench.kv.pair import Taken
from bench.kv.systems import MEMCPY, PLAIN_GRPC, TCP2, TUNED_GRPC, at_seam, whole
from bench.router.figures import Over

_LARGE_TOKENS: Final = 4096  # from here on rates are judged; below, the start of a hand-over counts too
_TAIL_MORE_MS: Final = 2.0
_PACE_MS: Final = 4.0  # of the pace that is judged


class Results:
    """All that was taken, by system, tokens, pace and round."""

    def __init__(self, taken: Iterable[Taken]) -> None:
        self._taken: Mapping[tuple[str, int, float], dict[int, Taken]] = {}
        found: dict[tuple[str, int, float], dict[int, Taken]] = {}
        for each in taken:
            found.setdefault((each.system, each.tokens, each.layer_ms), {})[each.round] = each
        self._taken = found
        self.systems = tuple(dict.fromkeys(system for system, _, _ in found))
        self.sizes = tuple(sorted({tokens for _, tokens, layer_ms in found if not layer_ms}))
        self.paces = tuple(sorted({(tokens, layer_ms) for _, tokens, layer_ms in found if layer_ms}))

    def of(self, system: str, tokens: int, layer_ms: float = 0.0) -> dict[int, Taken]:
        """Give what was taken of one system, by round."""
        return self._taken.get((system, tokens, layer_ms), {})

    def over(self, figure: Callable[[Taken], float], system: str, tokens: int, layer_ms: float = 0.0) -> Over | None:
        """Give the spread of a figure over rounds; None where nothing was taken."""
        return Over.of([figure(taken) for taken in self.of(system, tokens, layer_ms).values()])

    def ratio(self, system: str, base: str, tokens: int) -> Over | None:
        """Divide a system's rate by another's, round by round."""
        above, below = self.of(system, tokens), self.of(base, tokens)
        return Over.of([above[index].gb_per_s / below[index].gb_per_s for index in above if index in below])

    def allowed_tail_ms(self, system: str, tokens: int) -> float | None:
        """Say how long the tail may be: what one layer takes in a hand-over without pace, and a little."""
        all_at_once = self.over(lambda taken: taken.median_s * 1e3, system, tokens)
        return all_at_once.median / LAYERS + _TAIL_MORE_MS if all_at_once else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that was asked, and what was found."""

    label: str
    asked: str
    found: Over
    digits: int
    holds: bool  # by the median


def verdicts(results: Results) -> Iterator[Verdict]:
    """Judge everything that was both asked and measured."""
    yield from _ratios(results, "shm", MEMCPY, 0.7)
    yield from _ratios(results, "tcp", TCP2, 1.0)
    yield from _ratios(results, "grpc", PLAIN_GRPC, 2.5)
    yield from _ratios(results, "grpc", TUNED_GRPC, 0.9)
    yield from _short(results, "shm", 0.5)
    yield from _short(results, "tcp", 3.0)
    yield from _tails(results)


def _ratios(results: Results, transport: str, base: str, at_least: float) -> Iterator[Verdict]:
    sizes = [tokens for tokens in results.sizes if tokens >= _LARGE_TOKENS] or list(results.sizes[-1:])
    for system in (at_seam(transport), whole(transport)):
        for tokens in sizes:
            found = results.ratio(system, base, tokens)
            if found is not None:
                label = f"{system} / {base}, {tokens} tokens"
                yield Verdict(label, f"at least {at_least:g}", found, 2, found.median >= at_least)


def _short(results: Results, transport: str, below_ms: float) -> Iterator[Verdict]:
    for system in (at_seam(transport), whole(transport)):
        found = results.over(lambda taken: taken.median_s * 1e3, system, 64)
        if found is not None:
            yield Verdict(f"{system}, 64 tokens, ms", f"under {below_ms:g}", found, 3, found.median < below_ms)


def _tails(results: Results) -> Iterator[Verdict]:
    for system in results.systems:
        for tokens, layer_ms in results.paces:
            found = results.over(lambda taken: taken.median_s * 1e3, system, tokens, layer_ms)
            allowed_ms = results.allowed_tail_ms(system, tokens)
            if found is not None and allowed_ms is not None and layer_ms == _PACE_MS:
                label = f"{system}, {tokens} tokens at {layer_ms:g} ms a layer: exposed tail, ms"
                yield Verdict(label, f"at most {allowed_ms:.2f}", found, 2, found.median <= allowed_ms)
