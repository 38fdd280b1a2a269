"""The nearest promise is the least loosened one that is kept."""

from __future__ import annotations

import pytest

from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Target
from sim.search.goodput import Scenario
from sim.search.infeasible import Loosening
from sim.search.placements import Placement
from tests.sim.search.queue_model import queue_model, requests, shape

PLACEMENT = Placement(ClusterSpec(Mode.ONE_POOL, PoolSpec(1, shape().cost, 60_000)), (0,), 1.0)


def shortfall_of(target: Target, rate: float):
    scenario = Scenario((requests(300),), (target,))
    return Loosening(scenario, (PLACEMENT,), rate, queue_model).shortfall(None)


def kept(target: Target, rate: float) -> bool:
    outcome = queue_model(PLACEMENT.cluster, requests(300).at_rate(rate), (target,))
    return outcome.attainment((target,), skip=15)[0] >= target.attainment


def test_the_one_target_that_binds_is_loosened_and_no_further_than_needed() -> None:
    short = shortfall_of(Target("chat", 5.0, 0.002), 0.5)
    (nearest,) = short.nearest
    assert short.binding == "chat.tpot_ms"
    assert nearest.ttft_s == 5.0
    assert kept(nearest, 0.5)
    assert not kept(Target("chat", 5.0, nearest.tpot_s / 1.02), 0.5)


def test_a_short_ttft_binds_alone() -> None:
    short = shortfall_of(Target("chat", 0.001, 0.5), 0.5)
    assert short.binding == "chat.ttft_ms"
    assert short.nearest[0].tpot_s == 0.5
    assert kept(short.nearest[0], 0.5)


def test_both_are_loosened_when_one_does_not_help() -> None:
    short = shortfall_of(Target("chat", 0.001, 0.001), 0.5)
    (nearest,) = short.nearest
    assert nearest.ttft_s / 0.001 == pytest.approx(nearest.tpot_s / 0.001)
    assert "both" in short.reason
    assert kept(nearest, 0.5)


def test_a_rate_beyond_the_devices_binds_itself() -> None:
    short = shortfall_of(Target("chat", 1e-6, 1e-6), 1e5)
    assert short.binding == "rate"
    assert short.nearest == (Target("chat", 1e-6, 1e-6),)
