"""From nodes to planned pools, with planners that say what the test needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cluster.placement import Node
from cluster.planning import NO_PLANNER, describe_inventory, plan_pools, take_inventory
from core.config.models import BatonConfig, PlanConfig, PoolConfig, PoolsConfig
from core.errors import ConfigError
from core.planning import Inventory, NodeInventory, PlannedPools

POOLS = PoolsConfig(prefill=PoolConfig(replicas=1), decode=PoolConfig(replicas=3))
ANSWER = PlannedPools(POOLS, ("P/D pays", "2 requests/s"), json.dumps({"verdict": "P/D pays"}))
AUTO = BatonConfig(pools="auto")


def node(name: str, **free: float) -> Node:
    return Node(node_id=name, address=f"10.0.0.{name[-1]}", total=free, free=free)


GPU_NODE = Node(
    node_id="n2",
    address="10.0.0.2",
    total={"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0},
    free={"CPU": 60.0, "GPU": 6.0},
)


@dataclass
class Says:
    """A planner that gives one answer and keeps what it was asked."""

    answer: PlannedPools
    asked: list[Inventory] = field(default_factory=list)

    def __call__(self, config: BatonConfig, inventory: Inventory, *, check: Callable[[], None]) -> PlannedPools:
        assert config.pools == "auto"
        self.asked.append(inventory)
        return self.answer


def never() -> None:
    """No interruption."""


def test_a_planner_is_told_what_is_free_and_of_which_kind(tmp_path: Path) -> None:
    planner = Says(ANSWER)
    plan_pools(AUTO, [GPU_NODE, node("n1", CPU=4.0)], planner, base=tmp_path, check=never)
    assert planner.asked == [
        Inventory((NodeInventory("10.0.0.1", 4.0, 0, ""), NodeInventory("10.0.0.2", 60.0, 6, "H100")))
    ]


def test_the_answer_becomes_configuration(tmp_path: Path) -> None:
    planned = plan_pools(AUTO, [node("n1", CPU=4.0)], Says(ANSWER), base=tmp_path, check=never)
    assert planned.config == AUTO.model_copy(update={"pools": POOLS})
    assert (planned.lines, json.loads(planned.plan_json)) == (ANSWER.lines, {"verdict": "P/D pays"})


def test_a_hybrid_brings_its_rules_of_routing(tmp_path: Path) -> None:
    config = AUTO.model_copy(update={"plan": PlanConfig(profile="p.json")})
    answer = replace(ANSWER, policy="least-loaded", whole_below_tokens=128)
    router = plan_pools(config, [node("n1", CPU=4.0)], Says(answer), base=tmp_path, check=never).config.router
    assert (router.policy, router.whole_below_tokens) == ("least-loaded", 128)
    assert router.model_copy(update={"policy": AUTO.router.policy, "whole_below_tokens": 0}) == AUTO.router


def test_a_promise_that_cannot_be_kept_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    answer = replace(ANSWER, shortfall="interactive.tpot_ms binds\n  it can be kept at 55 ms instead of 40")
    with pytest.raises(ConfigError) as raised:
        plan_pools(AUTO, [GPU_NODE], Says(answer), base=tmp_path, check=never)
    lines = str(raised.value).splitlines()
    assert lines[0] == "pools: auto: no pools on 1 node with 6 H100 keep the promise"
    assert lines[1:3] == ["  interactive.tpot_ms binds", "    it can be kept at 55 ms instead of 40"]
    assert "slo.classes" in lines[3]
    assert "name the pools yourself" in lines[3]


def test_without_a_planner_auto_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pools: auto: no planner"):
        plan_pools(AUTO, [GPU_NODE], None, base=tmp_path, check=never)
    assert "name both pools" in NO_PLANNER


def test_a_plan_that_breaks_a_rule_is_not_started(tmp_path: Path) -> None:
    unlike = PoolsConfig(prefill=PoolConfig(tensor_parallel=2), decode=PoolConfig())
    with pytest.raises(ConfigError, match=r"the plan: pools\.decode\.tensor_parallel = 1: must equal"):
        plan_pools(AUTO, [GPU_NODE], Says(replace(ANSWER, pools=unlike)), base=tmp_path, check=never)


def test_an_interruption_during_the_search_ends_it(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        plan_pools(AUTO, [GPU_NODE], Says(ANSWER), base=tmp_path, check=interrupted)


def test_an_inventory_is_a_few_words() -> None:
    cores = take_inventory([node("n1", CPU=4.0), node("n2", CPU=4.0), node("n3", CPU=2.5)])
    assert describe_inventory(cores, cpus_per_worker=2) == (
        "1 node with 1 CPU worker, 2 nodes with 2 CPU workers of 2 cores"
    )
    unknown = take_inventory([node("n1", CPU=64.0, GPU=8.0)])
    assert describe_inventory(unknown, cpus_per_worker=1) == "1 node with 8 GPU"
