"""What the planner chose becomes what `up` takes, and is foreseen and told as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.pd_or_pool.__main__ import Bench
from bench.pd_or_pool.cases import LONG
from bench.pd_or_pool.choices import Choice, choices, table
from bench.pd_or_pool.planning import Predicted, predict
from bench.pd_or_pool.serving import Seen
from bench.pd_or_pool.verdict import APART, POOL
from core.config.load import load_config
from core.latency.profile import read_profile
from sim.outcome import Target
from tests.bench.pd_or_pool.test_planning import profile

TARGET = Target("steady output", 5.0, 0.02)
PROFILE = profile(1.0)


@pytest.fixture(scope="module")
def predicted() -> Predicted:
    return predict(PROFILE, LONG, TARGET)


@pytest.fixture(scope="module")
def both(predicted: Predicted) -> list[Choice]:
    return list(choices(LONG, TARGET, predicted, seconds=8.0))


def test_both_families_are_asked_the_same_between_what_they_are_planned_to_carry(
    both: list[Choice], predicted: Predicted
) -> None:
    assert [choice.family for choice in both] == [APART, POOL]
    assert len({choice.part for choice in both}) == 1
    assert len({choice.name for choice in both}) == 2
    plan, rate = predicted.plan, both[0].part.rate
    assert plan.best_one_pool is not None
    assert plan.best_disaggregated is not None
    assert plan.best_one_pool.goodput.mid < rate < plan.best_disaggregated.goodput.mid
    assert both[0].part.count == 40


def test_a_family_that_keeps_nothing_leaves_nothing_to_compare(predicted: Predicted) -> None:
    alone = replace(predicted, plan=replace(predicted.plan, best_one_pool=None))
    assert list(choices(LONG, TARGET, alone, seconds=8.0)) == []


def test_the_configuration_has_the_planned_pools_on_cores_and_a_router_that_refuses(
    both: list[Choice], tmp_path: Path
) -> None:
    base = Bench(tmp_path / "m", tmp_path / "out", seconds=1.0, turns=2).config()
    for choice in both:
        config = load_config(choice.config(base, PROFILE, tmp_path), environ={})
        assert config.pools != "auto"
        prefill, decode = choice.cluster.prefill, choice.cluster.decode
        assert config.pools.prefill.replicas == (prefill.replicas if prefill else 0)
        assert config.pools.decode.replicas == decode.replicas
        assert config.pools.decode.cpus * config.pools.decode.replicas + config.pools.prefill.replicas == 2
        assert config.pools.decode.tensor_parallel == 1
        assert config.router.admission
        assert config.slo.classes["all"].ttft_ms == 5000
        assert config.plan.profile is not None
        (shape,) = read_profile(Path(config.plan.profile)).shapes
        assert shape.cost == PROFILE.shape(decode.tensor_parallel).cost


def test_an_engine_of_both_cores_is_one_worker_with_its_own_costs(both: list[Choice], tmp_path: Path) -> None:
    base = Bench(tmp_path / "m", tmp_path / "out", seconds=1.0, turns=2).config()
    fast = profile(0.5)
    one = next(choice for choice in both if choice.family == POOL)
    decode = replace(one.cluster.decode, replicas=1, tensor_parallel=2, cost=fast.shape(2).cost)
    config = load_config(
        replace(one, cluster=replace(one.cluster, decode=decode)).config(base, fast, tmp_path), environ={}
    )
    assert config.pools != "auto"
    assert (config.pools.decode.replicas, config.pools.decode.cpus, config.pools.decode.tensor_parallel) == (1, 2, 1)
    assert config.plan.profile is not None
    assert read_profile(Path(config.plan.profile)).shapes[0].cost == fast.shape(2).cost


def test_what_was_foreseen_stands_beside_what_was_seen(both: list[Choice]) -> None:
    kept, late, gone = (100.0, 10.0), (9000.0, 10.0), (float("nan"), float("nan"))
    ttft, tpot = zip(*([kept] * 30 + [late] * 6 + [gone] * 4), strict=True)
    seen = Seen(LONG, both[0].part.rate, ttft, tpot, tpot, ())
    *_, row = table([(both[0], seen)], PROFILE)
    cells = row.strip("| ").split(" | ")
    assert cells[2] == f"40 at {both[0].part.rate:g}/s"
    assert cells[3].startswith(("P/D 1 x tp1 + 1 x tp1", "hybrid 1 x tp1 + 1 x tp1"))
    assert cells[5].startswith("75 (")
    assert cells[6:] == ["83", "100", "4"]
    foreseen = both[0].foreseen(PROFILE)
    assert 0 < foreseen.low <= foreseen.mid <= foreseen.high <= 1
