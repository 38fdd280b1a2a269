"""What the planner is asked, and that its answer follows the profile."""

from __future__ import annotations

import pytest

from bench.pd_or_pool.cases import LONG
from bench.pd_or_pool.planning import predict
from bench.pd_or_pool.verdict import APART, POOL, UNCLEAR
from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import StepCost, Table
from sim.outcome import Target


def cost(scale: float) -> StepCost:
    return StepCost(
        Table.line(0.0, 1e-3 * scale), Table.constant(0.0), Table.constant(0.01 * scale), Table.constant(0.0), 0.0
    )


def profile(both: float) -> EngineProfile:
    """Make a profile in which an engine of both cores takes `both` times what one of one core takes."""
    shapes = (ShapeProfile(1, 1, cost(1.0), 50_000, 0.02, 0.02), ShapeProfile(2, 1, cost(both), 50_000, 0.02, 0.02))
    return EngineProfile("m", "cpu", "vllm", "test", shapes, kv_bytes_per_token=1_000)


def test_where_both_cores_do_everything_in_half_the_time_one_pool_keeps_more() -> None:
    # Prompts bind: the pair's one prefill core takes 1 s for each of them, both cores take half of that.
    found = predict(profile(0.5), LONG, Target("relaxed", 5.0, 1.0))
    assert found.verdict == POOL
    assert found.family == POOL
    assert found.pool.mid == pytest.approx(2 * found.apart.mid, rel=0.25)


def test_a_promise_that_nobody_keeps_has_no_goodput() -> None:
    found = predict(profile(0.5), LONG, Target("strict", 0.01, 1.0))
    assert (found.apart.mid, found.pool.mid, found.verdict, found.family) == (0.0, 0.0, UNCLEAR, "cannot be met")


def test_what_the_planner_chooses_is_asked_as_on_the_command_line() -> None:
    # Two cores do no more than one, so a pool of both has half of what two workers have, and one long prompt stops it.
    found = predict(profile(1.0), LONG, Target("steady output", 5.0, 0.02))
    assert (found.verdict, found.family) == (APART, APART)
    assert found.plan.ratio is not None
    assert found.plan.ratio.low > 1
    assert found.plan.own_policy is not None
