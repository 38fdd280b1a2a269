"""What policies are told of two pools whose times are easy to reckon."""

from __future__ import annotations

from typing import Any

from core.latency.step import StepCost, Table
from core.policy.context import ClassTarget, PolicyContext, PoolFacts
from core.types import Role

# A prompt takes 10 ms and 0.1 ms for each token; a decode step 10 ms, 1 ms for each sequence and 1 us for each token of
# context.
COST = StepCost(
    dense=Table.line(0.010, 0.0001),
    pair=Table.constant(0.0),
    decode_fixed=Table.line(0.010, 0.001),
    decode_context=Table.constant(1e-6),
)


def context(**changes: Any) -> PolicyContext:
    """Both pools alike, and one class with 500 ms to the first token and 50 ms for each other."""
    facts = PoolFacts(COST, max_num_seqs=32, max_num_batched_tokens=4096)
    settings: dict[str, Any] = {
        "pools": dict.fromkeys(Role, facts),
        "targets": {"interactive": ClassTarget(0.5, 0.05)},
    }
    return PolicyContext(**settings | changes)
