"""When a policy is told anew what it works with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.latency.step import Step
from core.policy.context import PolicyContext, PoolFacts
from core.policy.learning import Learning
from core.policy.registry import policy_named
from core.policy.slo_aware import UNKNOWN_COSTS
from core.types import ClusterView, Forecast, RequestShape, Role, Route, WorkerState
from tests.support.contexts import COST, context
from tests.support.views import worker

UNKNOWN = context(pools=dict.fromkeys(Role, PoolFacts(None, 32, 4096)))
BLOCK = 32


def watch(learning: Learning, slowness: float = 1.0) -> None:
    """Observe steps of many sizes, prompts on prefill workers and outputs on decode workers."""
    for i in range(1, 65):
        tokens, blocks = 50 * i, 5 + 37 * i % 200
        prompt_s = slowness * COST.seconds(Step(tokens, 1, tokens * tokens / 2))
        learning.observe_step(Role.PREFILL, WorkerState(step_s=prompt_s, step_prompt_tokens=tokens, step_seqs=1), BLOCK)
        decode_s = slowness * COST.decode_s(i, blocks * BLOCK)
        decoded = WorkerState(kv_blocks_used=blocks, step_s=decode_s, step_seqs=i)
        learning.observe_step(Role.DECODE, decoded, BLOCK)


def test_an_overhead_is_told_when_it_is_seen_and_when_it_moves() -> None:
    learning = Learning(context())
    for _ in range(15):
        learning.observe_overhead(0.010)
    assert learning.refined() is None
    learning.observe_overhead(0.500)  # one that stood behind something else
    known = learning.refined()
    assert known is not None
    assert known.request_overhead_s == 0.010
    assert decide(known).forecast.ttft_s == pytest.approx(decide(context()).forecast.ttft_s + 0.010)  # type: ignore[union-attr]
    for _ in range(128):
        learning.observe_overhead(0.0115)
    assert learning.refined() is None
    for _ in range(128):
        learning.observe_overhead(0.020)
    known = learning.refined()
    assert known is not None
    assert known.request_overhead_s == 0.020


def decide(known: PolicyContext) -> Route:
    view = ClusterView((worker("d0", Role.DECODE), worker("p0", Role.PREFILL)))
    decision = policy_named("slo-aware", known).decide(RequestShape("r", 1000, 16, "interactive"), view, 0.0)
    assert isinstance(decision, Route)
    return decision


def test_costs_are_told_once_they_are_known_and_again_when_they_change() -> None:
    learning = Learning(UNKNOWN)
    assert learning.refined() is None
    assert (decide(learning.context).reason, decide(learning.context).forecast) == (UNKNOWN_COSTS, None)
    watch(learning)
    known = learning.refined()
    assert known is not None
    assert learning.context == known
    for role in Role:
        facts = known.pools[role]
        assert facts.cost is not None
        assert facts.max_num_seqs == 32
        assert facts.cost.prefill_s(1000) == pytest.approx(COST.prefill_s(1000), rel=0.02)
        assert facts.cost.decode_s(8, 8000) == pytest.approx(COST.decode_s(8, 8000), rel=0.02)
    forecast = decide(known).forecast
    assert isinstance(forecast, Forecast)
    assert forecast.ttft_s == pytest.approx(0.110 + 0.012, rel=0.02)
    watch(learning)
    assert learning.refined() is None
    for _ in range(12):
        watch(learning, slowness=1.5)
    slower = learning.refined()
    assert slower is not None
    cost = slower.pools[Role.PREFILL].cost
    assert cost is not None
    assert cost.prefill_s(1000) == pytest.approx(1.5 * COST.prefill_s(1000), rel=0.02)


def test_costs_of_a_profile_stay() -> None:
    learning = Learning(context())
    watch(learning, slowness=3.0)
    assert learning.refined() is None


def test_an_unknown_pool_gets_its_limits_kept_and_its_own_steps_first() -> None:
    half_known = context(pools={Role.PREFILL: PoolFacts(COST), Role.DECODE: PoolFacts(None, 7)})
    learning = Learning(half_known)
    watch(learning, slowness=2.0)
    known = learning.refined()
    assert known is not None
    assert known.pools[Role.PREFILL] == PoolFacts(COST)
    cost = known.pools[Role.DECODE].cost
    assert known.pools[Role.DECODE] == PoolFacts(cost, 7)
    assert cost is not None
    assert cost.decode_s(8, 8000) == pytest.approx(2 * COST.decode_s(8, 8000), rel=0.02)


def test_the_mean_output_follows_what_ends() -> None:
    learning = Learning(replace(context(), mean_output_tokens=100.0))
    for _ in range(20):
        learning.observe_output(110)
    assert learning.refined() is None
    for _ in range(300):
        learning.observe_output(400)
    known = learning.refined()
    assert known is not None
    assert known.mean_output_tokens == pytest.approx(400, rel=0.15)
    assert known.pools == context().pools
