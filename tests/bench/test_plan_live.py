"""The trace that is replayed is the same for equal seeds and as heavy as it was asked to be."""

from __future__ import annotations

import numpy as np
import pytest

from bench.plan_live import Plan, make_trace
from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import StepCost, Table

COST = StepCost(Table.line(1e-3, 1e-3), Table.constant(0.0), Table.constant(0.01), Table.constant(0.0))
PROFILE = EngineProfile(
    "m", "d", "e", "s", (ShapeProfile(1, 1, COST, 9000, 0.1, 0.1),), 100, 32, request_overhead_s=0.1,
    handover_overhead_s=0.2,
)  # fmt: skip


def test_equal_seeds_make_equal_traces() -> None:
    first, second, other = (make_trace(Plan(60.0, 0.5, seed), PROFILE) for seed in (1, 1, 2))
    for name in ("arrived_s", "prompt_tokens", "output_tokens"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.prompt_tokens[:20], other.prompt_tokens[:20])


def test_prefill_is_as_busy_as_asked() -> None:
    trace = make_trace(Plan(1000.0, 0.5, 3), PROFILE)
    busy_s = sum(COST.prefill_s(int(tokens)) for tokens in trace.prompt_tokens)
    assert busy_s / 1000.0 == pytest.approx(0.5, rel=0.15)


def test_chats_and_long_prompts_fit_the_model() -> None:
    trace = make_trace(Plan(500.0, 0.5, 3), PROFILE)
    assert trace.arrived_s[0] == 0.0
    assert trace.arrived_s[-1] < 500.0
    assert 0.05 < (trace.prompt_tokens >= 600).mean() < 0.25
    assert (trace.prompt_tokens + trace.output_tokens).max() < 4096
    assert trace.output_tokens.min() >= 8
