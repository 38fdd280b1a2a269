"""What a changed file means for a cluster that runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.cluster_status import StartOrder
from cluster.rollout import Rollout, plan_rollout
from cluster.worker_specs import revision
from core.config.load import load_config
from core.config.models import BatonConfig
from core.control.actions import PoolSizes
from core.errors import ConfigError
from core.types import Role


def order(*changes: str) -> StartOrder:
    config = load_config(None, overrides=["model.path=none/such", "pools.decode.replicas=2", *changes], environ={})
    return StartOrder(config, (), "simulated", (), "/", "/run", "n", "127.0.0.1", "token", {})


HAD = PoolSizes(1, 2)


def plan(after: StartOrder, *, had: PoolSizes = HAD, router_differs: bool = False) -> Rollout:
    return plan_rollout(order(), after, router_differs=router_differs, had=had)


def test_the_same_file_changes_nothing() -> None:
    assert plan(order()) == Rollout(None, (), False, ())


@pytest.mark.parametrize("role", list(Role))
def test_settings_that_were_written_down_and_read_again_are_no_new_revision(role: Role) -> None:
    """As a controller that is made anew reads them: else it would replace every worker that serves."""
    written = order().config.model_dump_json()
    again = replace(order(), config=BatonConfig.model_validate_json(written))
    assert revision(again, role) == revision(order(), role)
    assert revision(order(f"pools.{role}.cpus=1"), role) == revision(order(), role)  # the default, said outright


def test_changed_sizes_scale_and_replace_nobody() -> None:
    assert plan(order("pools.decode.replicas=3")) == Rollout(PoolSizes(1, 3), (), False, ("the decode pool: 2 -> 3",))


def test_sizes_that_the_file_does_not_change_stay_as_they_were_scaled() -> None:
    found = plan(order("pools.prefill.replicas=2"), had=PoolSizes(1, 7))
    assert found.sizes == PoolSizes(2, 7)
    assert plan(order("pools.decode.max_num_seqs=8"), had=PoolSizes(4, 4)).sizes is None


def test_settings_of_one_pool_replace_its_workers_only() -> None:
    assert plan(order("pools.decode.max_num_seqs=8")).roles == (Role.DECODE,)


@pytest.mark.parametrize("change", ["model.block_size=64", "kv.lease_s=7"])
def test_settings_of_the_model_replace_all_workers(change: str) -> None:
    found = plan(order(change))
    assert found.roles == (Role.PREFILL, Role.DECODE)
    assert found.lines == ("workers of the prefill pool and the decode pool are replaced, pair by pair",)


def test_new_weights_in_the_old_folder_are_a_new_revision(tmp_path: Path) -> None:
    folder = tmp_path
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"old")
    running = order(f"model.path={folder}")
    before = plan_rollout(running, running, router_differs=False, had=HAD)
    first = revision(running, Role.DECODE)
    (folder / "model.safetensors").write_bytes(b"new")
    assert before.roles == ()
    assert revision(running, Role.DECODE) != first


def test_other_routing_restarts_the_router() -> None:
    found = plan(order(), router_differs=True)
    assert found.restarts_router
    assert "connections are refused for about a second" in found.lines[0]


@pytest.mark.parametrize("change", ["router.port=9", "ray.dashboard=true"])
def test_what_processes_are_bound_to_is_refused(change: str) -> None:
    with pytest.raises(ConfigError, match=change.partition("=")[0]):
        plan(order(change))
