"""Without a profile sizes are decided by what was measured, and nothing is decided before that."""

from __future__ import annotations

from dataclasses import replace

from core.control.actions import MeasuredCosts, Observation, PoolSizes
from core.control.decider import Settings, SizingDecider
from core.control.measured import WAITS, MeasuredDecider, MeasuredService, WorkerLimits
from core.types import Role
from tests.support.control import CLASS, Watched, service

MOST = 10
LONG_PROMPT = (2000, 10)
LIMITS = WorkerLimits(max_num_seqs=64, max_num_batched_tokens=4096)
SERVICE = MeasuredService(LIMITS, LIMITS, (CLASS,), service().targets)
COST = service().prefill.cost
COSTS = MeasuredCosts(COST, COST, 0.02)


def told(seen: Observation, costs: MeasuredCosts | None = COSTS, *, blocks: int = 1000) -> Observation:
    workers = tuple(replace(worker, kv_blocks_total=blocks, block_size=16) for worker in seen.workers)
    return replace(seen, costs=costs, workers=workers)


def decider() -> MeasuredDecider:
    return MeasuredDecider(SERVICE, lambda model: SizingDecider(model, Settings(most_workers=MOST)))


def test_before_costs_and_room_are_known_it_says_what_it_waits_for_and_decides_nothing() -> None:
    watched, made = Watched(PoolSizes(1, 5), MOST), decider()
    for _ in range(6):
        assert made.decide(told(watched.seen(70, LONG_PROMPT), costs=None)) is None
        assert made.decide(told(watched.seen(70, LONG_PROMPT), blocks=0)) is None
    assert made.waits_for == WAITS
    assert made.take_outcomes() == ()


def test_once_they_are_known_it_decides_as_with_a_profile() -> None:
    watched, made = Watched(PoolSizes(1, 5), MOST), decider()
    for _ in range(6):
        watched.apply(made.decide(told(watched.seen(70, LONG_PROMPT))))
    assert made.waits_for == ""
    assert watched.sizes.prefill > 1


def test_it_follows_costs_that_turn_out_otherwise() -> None:
    watched, made = Watched(PoolSizes(3, 3), MOST), decider()
    for _ in range(6):
        assert made.decide(told(watched.seen(60, (300, 100)))) is None
    slower = MeasuredCosts(COST.scaled(prefill=8.0), COST, 0.02)
    for _ in range(6):
        watched.apply(made.decide(told(watched.seen(60, (300, 100)), slower)))
    assert watched.sizes.prefill > 3


def test_the_model_has_the_limits_of_the_configuration_and_the_room_of_the_smallest_worker() -> None:
    watched = Watched(PoolSizes(2, 2), MOST)
    seen = told(watched.seen(30, (300, 100)))
    small = replace(seen.workers[-1], kv_blocks_total=400)
    model = SERVICE.model(replace(seen, workers=(*seen.workers[:-1], small)))
    assert model is not None
    assert small.role is Role.DECODE
    assert (model.prefill.kv_capacity_tokens, model.decode.kv_capacity_tokens) == (16_000, 6_400)
    assert (model.decode.max_num_seqs, model.decode.max_num_batched_tokens) == (64, 4096)
    assert model.request_overhead_s == 0.02
