"""A workload: what arrives when, as arrays.

Owns the value and what keeps its meaning (scaling, parts, resampling). Must not know files (sim.traces) or
distributions (sim.generators).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _no_ints() -> Ints:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Requests in order of arrival; all arrays have one entry for each, but those of the prefixes."""

    name: str
    arrived_s: Floats  # never falling, from 0
    prompt_tokens: Ints  # at least 1
    output_tokens: Ints  # at least 1; no policy may look at it
    slo_class: Ints = field(default_factory=_no_ints)  # index into the promise's classes; empty: all of class 0
    # Prefix blocks, as in the Mooncake traces: request i has ids prefix_ids[prefix_start[i]:prefix_start[i + 1]], each
    # for the next `prefix_block_tokens` of its prompt; an equal id is an equal prefix. Empty: nothing is shared.
    prefix_start: Ints = field(default_factory=_no_ints)  # one more than requests, or empty
    prefix_ids: Ints = field(default_factory=_no_ints)  # from 0, without gaps
    prefix_block_tokens: int = 512

    def __len__(self) -> int:
        return len(self.arrived_s)

    @property
    def rate(self) -> float:
        """Mean arrivals per second over the span of the workload."""
        span_s = float(self.arrived_s[-1] - self.arrived_s[0]) if len(self) > 1 else 0.0
        return (len(self) - 1) / span_s if span_s > 0 else float("inf")

    def at_rate(self, rate: float) -> Workload:
        """Stretch time so that `rate` requests arrive per second; order, lengths and burstiness stay.

        A workload whose requests all come at once has no rate and stays as it is.
        """
        return replace(self, arrived_s=self.arrived_s * (self.rate / rate)) if np.isfinite(self.rate) else self

    def classes(self) -> Ints:
        """Return the class of every request, also when there is only one."""
        return self.slo_class if len(self.slo_class) else np.zeros(len(self), np.int64)

    def part(self, begin: int, end: int) -> Workload:
        """Take requests `begin` to `end` (not among them); time starts again at 0 with the first of them."""
        chosen = np.arange(len(self))[begin:end]
        return self._of(chosen, _from_zero(self.arrived_s[chosen]))

    def fitting(self, max_total_tokens: int) -> Workload:
        """Leave out the requests whose prompt and output together exceed `max_total_tokens`.

        The others keep their distances in time, from 0 with the first of them.
        """
        chosen = np.flatnonzero(self.prompt_tokens + self.output_tokens <= max_total_tokens)
        return self if len(chosen) == len(self) else self._of(chosen, _from_zero(self.arrived_s[chosen]))

    def chosen(self, places: Ints) -> Workload:
        """Take the requests at `places`, rising, at their times."""
        return self._of(places, _from_zero(self.arrived_s[places]))

    def bootstrap(self, rng: np.random.Generator, block: int) -> Workload:
        """Draw as many requests again, in runs of `block` neighbours that keep their gaps, lengths and order.

        This is the circular block bootstrap (Politis and Romano, 1992): bursts shorter than a run survive. A request
        that is drawn again counts as one of another world: it shares prefixes with the second drawings of others, never
        with its own first, or the resampled trace would hit the prefix cache far more often than the real one. Raises
        ValueError for an empty workload or block.
        """
        size = len(self)
        if size == 0 or block < 1:
            raise ValueError("a bootstrap needs at least one request and blocks of at least one")
        block = min(block, size)
        begins = rng.integers(0, size, -(-size // block))
        chosen = ((begins[:, None] + np.arange(block)) % size).reshape(-1)[:size]
        gaps_s = np.diff(self.arrived_s, prepend=0.0)
        gaps_s[0] = gaps_s[1:].mean() if size > 1 else 0.0  # the gap before the first arrival is not known
        return self._of(chosen, _from_zero(np.cumsum(gaps_s[chosen])), worlds=_occurrence(chosen))

    def _of(self, chosen: Ints, arrived_s: Floats, worlds: Ints | None = None) -> Workload:
        """Gather requests, with new arrival times; `worlds` keeps prefixes of unlike worlds apart."""
        drawn = replace(
            self,
            arrived_s=arrived_s,
            prompt_tokens=self.prompt_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            slo_class=self.slo_class[chosen] if len(self.slo_class) else self.slo_class,
        )
        if not len(self.prefix_start):
            return drawn
        lengths = np.diff(self.prefix_start)[chosen]
        prefix_start = np.concatenate(([0], np.cumsum(lengths)))
        within = np.arange(prefix_start[-1]) - np.repeat(prefix_start[:-1], lengths)
        ids = self.prefix_ids[np.repeat(self.prefix_start[chosen], lengths) + within]
        if worlds is not None and len(ids):
            ids = ids + np.repeat(worlds, lengths) * (int(self.prefix_ids.max()) + 1)
        return replace(drawn, prefix_start=prefix_start, prefix_ids=without_gaps(ids))


def _from_zero(arrived_s: Floats) -> Floats:
    return arrived_s - arrived_s[0] if len(arrived_s) else arrived_s


def without_gaps(ids: Ints) -> Ints:
    """Renumber ids from 0 in order of first appearance; equal ones stay equal."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _occurrence(values: Ints) -> Ints:
    """Count, for each entry, the equal entries before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    runs = np.diff(np.append(begins, len(ordered)))
    occurrence = np.empty(len(values), np.int64)
    occurrence[order] = np.arange(len(ordered)) - np.repeat(begins, runs)
    return occurrence
