"""Workloads, rates and targets, by a profile whose times are round."""

from __future__ import annotations

import numpy as np
import pytest

from bench.live_pools import apart, one_pool
from bench.pd_or_pool.cases import (
    CHAT,
    LOADS,
    LONG,
    MIXED,
    PROMISES,
    WORKLOADS,
    kept_rate,
    make,
    rates,
    target,
)
from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import StepCost, Table


def cost(scale: float) -> StepCost:
    """A prompt token takes 1 ms, a decode step 10 ms, times `scale`."""
    return StepCost(
        Table.line(0.0, 1e-3 * scale),
        Table.constant(0.0),
        Table.line(0.01 * scale, 1e-4 * scale),
        Table.constant(0.0),
        0.0,
    )


PROFILE = EngineProfile(
    "m",
    "cpu",
    "vllm",
    "test",
    (ShapeProfile(1, 1, cost(1.0), 50_000, 0.1, 0.1), ShapeProfile(2, 1, cost(0.6), 100_000, 0.1, 0.1)),
    kv_bytes_per_token=1_000,
)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_requests_come_at_the_rate_and_equal_seeds_give_equal_ones(workload: str) -> None:
    made, again = (make(workload, rate=4.0, count=400, seed=3) for _ in range(2))
    assert made.rate == pytest.approx(4.0, rel=0.05)
    assert (made.arrived_s == again.arrived_s).all()
    assert (made.prompt_tokens == again.prompt_tokens).all()
    assert not np.array_equal(made.prompt_tokens, make(workload, rate=4.0, count=400, seed=4).prompt_tokens)


def test_the_three_kinds_are_what_they_are_called() -> None:
    chats, long, mixed = (make(name, rate=1.0, count=400, seed=0) for name in (CHAT, LONG, MIXED))
    assert chats.prompt_tokens.max() <= 128 <= 600 <= long.prompt_tokens.min()
    assert long.output_tokens.max() < chats.output_tokens.min()
    assert set(mixed.prompt_tokens.tolist()) == {64, 1_000}
    assert (mixed.prompt_tokens == 1_000).mean() == pytest.approx(0.25, abs=0.06)


def test_targets_are_multiples_of_an_idle_engine_of_one_core() -> None:
    relaxed, quick, steady = (target(MIXED, promise, PROFILE) for promise in PROMISES)
    assert relaxed.ttft_s == pytest.approx(PROMISES[0].ttft_times * 1.01, rel=0.05)
    assert relaxed.tpot_s == pytest.approx(PROMISES[0].tpot_times * 0.0101, rel=0.05)
    assert quick.ttft_s < relaxed.ttft_s == steady.ttft_s
    assert steady.tpot_s < relaxed.tpot_s == quick.tpot_s


def test_rates_lie_about_what_the_better_of_both_keeps() -> None:
    promised = (target(LONG, PROMISES[0], PROFILE),)
    best = max(kept_rate(cluster, LONG, promised) for cluster in (apart(PROFILE), one_pool(PROFILE, 2)))
    # A prompt of 1,000 tokens takes both cores 0.6 s; one core's prompts are not to stop its outputs.
    assert 0.5 < best < 1 / 0.6
    assert rates(LONG, PROFILE) == pytest.approx([load * best for load in LOADS], rel=0.06)
