"""The settings of a placement that take no device: routing, admission, thresholds, tokens in a step.

Owns which settings are next to which. Must not know how they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sim.cluster import Admission, ClusterSpec, Mode, Order, PoolSpec, Routing
from sim.plan import PlanQuestion
from sim.search.placements import Placement, whole_prompts

_PROMPT_QUANTILES = (0.25, 0.5, 0.75)


def neighbours(question: PlanQuestion, placement: Placement) -> Iterator[Placement]:
    """List the placements that differ in one setting."""
    routing = placement.cluster.routing
    for admission in Admission:
        if admission is not routing.admission:
            yield placement.routed(replace(routing, admission=admission))
    for order in Order:
        if order is not routing.order:
            yield placement.routed(replace(routing, order=order))
    if placement.cluster.prefill is not None:
        yield from _prefill_neighbours(question, placement, placement.cluster.prefill)
    if placement.cluster.mode is Mode.HYBRID:
        yield from _hybrid_neighbours(question, placement)


def _prefill_neighbours(question: PlanQuestion, placement: Placement, prefill: PoolSpec) -> Iterator[Placement]:
    """Limit a prefill step to fewer tokens: prompts that share a step end with it, and reach decode all at once."""
    for tokens in sorted({*question.chunk_tokens, whole_prompts(question)} - {prefill.max_num_batched_tokens}):
        yield replace(placement, cluster=replace(placement.cluster, prefill=_limited(prefill, tokens)))


def _hybrid_neighbours(question: PlanQuestion, placement: Placement) -> Iterator[Placement]:
    routing, decode = placement.cluster.routing, placement.cluster.decode
    for tokens in thresholds(question):
        if tokens != routing.whole_below_tokens and (tokens or routing.overflow):
            yield placement.routed(replace(routing, whole_below_tokens=tokens))
    if routing.whole_below_tokens:
        yield placement.routed(replace(routing, overflow=not routing.overflow))
    for chunk in question.chunk_tokens:
        if chunk != decode.max_num_batched_tokens:
            yield replace(placement, cluster=replace(placement.cluster, decode=_limited(decode, chunk)))


@dataclass(frozen=True, slots=True)
class Settings:
    """What one placement of a mode may take over from another."""

    routing: Routing
    prefill_tokens: int | None  # in a step; None: there is no prefill pool
    decode_tokens: int | None  # in a step; None: the placement's own, for one pool is listed with each

    @classmethod
    def of(cls, cluster: ClusterSpec) -> Settings:
        """Read them off a cluster."""
        prefill = cluster.prefill.max_num_batched_tokens if cluster.prefill is not None else None
        decode = cluster.decode.max_num_batched_tokens if cluster.mode is Mode.HYBRID else None
        return cls(cluster.routing, prefill, decode)

    def given_to(self, placement: Placement) -> Placement:
        """Return a placement of the same mode with them."""
        cluster = replace(placement.cluster, routing=self.routing)
        if cluster.prefill is not None and self.prefill_tokens is not None:
            cluster = replace(cluster, prefill=_limited(cluster.prefill, self.prefill_tokens))
        if self.decode_tokens is not None:
            cluster = replace(cluster, decode=_limited(cluster.decode, self.decode_tokens))
        return replace(placement, cluster=cluster)


def _limited(pool: PoolSpec, tokens: int) -> PoolSpec:
    return replace(pool, max_num_batched_tokens=tokens)


def thresholds(question: PlanQuestion) -> tuple[int, ...]:
    """List the prompt lengths up to which a decode worker may serve whole; 0: none."""
    lengths = np.quantile(question.workload.prompt_tokens, _PROMPT_QUANTILES)
    return (0, *sorted({max(16, round(float(length) / 16) * 16) for length in lengths}))
