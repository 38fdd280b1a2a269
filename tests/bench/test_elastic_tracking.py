"""Target tracking: the rule of Kubernetes' autoscaler."""

from __future__ import annotations

from dataclasses import replace

from bench.elastic_tracking import TargetTracking
from core.control.actions import Observation, PoolSizes
from core.types import Role
from tests.support.control import Watched


def loaded(watched: Watched, owed: int, running: int) -> Observation:
    seen = watched.seen(10, (100, 10))
    workers = tuple(
        replace(w, owed_prompt_tokens=owed if w.role is Role.PREFILL else 0, num_running=running) for w in seen.workers
    )
    return replace(seen, workers=workers)


def test_pools_follow_their_own_figure_and_ignore_a_tenth() -> None:
    watched, rule = Watched(PoolSizes(2, 2), 20), TargetTracking(owed_tokens=1000.0, running=50.0)
    assert rule.decide(loaded(watched, 1050, 52)) is None
    decision = rule.decide(loaded(watched, 3000, 50))
    assert decision is not None
    assert decision.sizes == PoolSizes(6, 2)


def test_a_pool_shrinks_only_after_five_minutes() -> None:
    watched, rule = Watched(PoolSizes(4, 4), 20), TargetTracking(owed_tokens=1000.0, running=50.0)
    assert rule.decide(loaded(watched, 1000, 50)) is None
    decisions = [rule.decide(loaded(watched, 500, 50)) for _ in range(32)]
    assert decisions[:29] == [None] * 29
    assert decisions[-1] is not None
    assert decisions[-1].sizes == PoolSizes(2, 4)
