"""Pools that do not fit on the nodes of Ray start on those that its autoscaler makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ray_processes import Baton, autoscaling

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def ray() -> Iterator[str]:
    with autoscaling(head_cpus=1, node_cpus=2, most_nodes=1) as address:
        yield address


@pytest.fixture
def baton(tmp_path: Path) -> Iterator[Baton]:
    made = Baton.in_folder(tmp_path)
    yield made
    made.run("down")


def test_what_no_node_can_hold_is_refused_with_what_was_tried(ray: str, baton: Baton) -> None:
    done = baton.run("up", f"ray.address={ray}", "pools.decode.cpus=64", "ray.wait_for_nodes_s=3")
    assert done.returncode == 2
    assert "asked and made no node for it in 3 s (ray.wait_for_nodes_s)" in done.stderr


def test_pools_start_on_nodes_that_are_made_for_them(ray: str, baton: Baton) -> None:
    refused = baton.run("up", f"ray.address={ray}", "pools.decode.replicas=2")
    assert "ray.wait_for_nodes_s" in refused.stderr
    up = baton.result("up", f"ray.address={ray}", "pools.decode.replicas=2", "ray.wait_for_nodes_s=120")
    assert up["ok"]
    members = baton.status()["members"]
    assert [m["state"] for m in members] == ["ready"] * 4
