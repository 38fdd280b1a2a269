"""The settings of a placement that take no device: routing, admission, thresholds, tokens in a step.

Owns which settings are next to which. Must not know how they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from sim.cluster import Admission, Mode, Order
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
    if placement.cluster.mode is Mode.HYBRID:
        yield from _hybrid_neighbours(question, placement)


def _hybrid_neighbours(question: PlanQuestion, placement: Placement) -> Iterator[Placement]:
    routing, decode = placement.cluster.routing, placement.cluster.decode
    for tokens in thresholds(question):
        if tokens != routing.whole_below_tokens and (tokens or routing.overflow):
            yield placement.routed(replace(routing, whole_below_tokens=tokens))
    if routing.whole_below_tokens:
        yield placement.routed(replace(routing, overflow=not routing.overflow))
    for chunk in question.chunk_tokens:
        if chunk != decode.max_num_batched_tokens:
            chunked = replace(decode, max_num_batched_tokens=chunk)
            yield replace(placement, cluster=replace(placement.cluster, decode=chunked))


def prefill_steps(question: PlanQuestion, placement: Placement) -> Iterator[Placement]:
    """List the placements whose prefill steps take another number of tokens.

    Prompts that share a step end with it and reach decode all at once: a router that does not hold prompts back may
    keep more with small steps, one that does has few of them in a step anyway.
    """
    prefill = placement.cluster.prefill
    if prefill is None:
        return
    for tokens in sorted({*question.chunk_tokens, whole_prompts(question)} - {prefill.max_num_batched_tokens}):
        limited = replace(prefill, max_num_batched_tokens=tokens)
        yield replace(placement, cluster=replace(placement.cluster, prefill=limited))


def thresholds(question: PlanQuestion) -> tuple[int, ...]:
    """List the prompt lengths up to which a decode worker may serve whole; 0: none."""
    lengths = np.quantile(question.workload.prompt_tokens, _PROMPT_QUANTILES)
    return (0, *sorted({max(16, round(float(length) / 16) * 16) for length in lengths}))
