"""The files for `ray up`: Ray takes them, and what they name is there. No machine is started."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from core.config.load import load_config

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "deploy" / "ray").glob("*.yaml"))
MARKS = {"prefill_capable", "decode_capable"}
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")

pytestmark = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    return content


def commands(content: dict[str, Any]) -> list[str]:
    return [command for key in COMMANDS for command in content.get(f"{key}_commands", [])]


def test_ray_schema_accepts_it(file: Path) -> None:
    autoscaler = pytest.importorskip("ray.autoscaler")
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(read(file), schema)


def test_ray_prepares_and_validates_it(file: Path) -> None:
    """What `ray up` does before it turns to the provider; checks node types and the docker section too."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(read(file))
    util.validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert sum(t.get("min_workers", 0) for t in prepared["available_node_types"].values()) == prepared["max_workers"]


def test_each_pool_has_nodes_of_its_own_mark(file: Path) -> None:
    content = read(file)
    marked: set[str] = set()
    for name, node_type in content.get("available_node_types", {}).items():
        marks = MARKS & node_type["resources"].keys()
        assert marks == ({f"{name}_capable"} if name != content["head_node_type"] else set())
        marked |= marks
    if content["provider"]["type"] == "local":  # Ray allows no node types there
        marked = {mark for mark in MARKS if any(mark in command for command in commands(content))}
    assert marked == MARKS


def test_commands_and_comments_name_files_that_exist(file: Path) -> None:
    text = file.read_text()
    named = set(re.findall(r"\b(?:deploy/[\w./-]+\.(?:py|yaml)|baton\.py)", text))
    assert {"deploy/setup.py", "baton.py", f"deploy/ray/{file.name}"} <= named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_every_node_finds_the_code_at_the_same_path(file: Path) -> None:
    content = read(file)
    assert content["file_mounts"] == {"~/baton": "."}
    assert {".venv", ".git", ".baton"} <= set(content["rsync_exclude"])
    starts = [command for command in commands(content) if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_worker_niceness=0 PYTHONPATH=$HOME/baton" in command for command in starts)


def test_its_ray_is_the_version_of_the_project(file: Path) -> None:
    version = re.search(r"ray\[default\]==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert version is not None
    assert set(re.findall(r"rayproject/ray:([\d.]+)", file.read_text())) <= {version[1]}


def test_the_pools_it_is_made_for_fit_its_nodes(file: Path) -> None:
    """The example's configuration is valid, and asks no more GPUs and cores of a pool than its nodes have."""
    configs = re.findall(r"baton\.py up (deploy/\S+\.yaml)", file.read_text())
    types = read(file).get("available_node_types", {})
    for name in configs:
        config = load_config(ROOT / name, environ={})
        for pool_name in types.keys() & {"prefill", "decode"}:
            pool = getattr(config.pools, pool_name)
            has, nodes = types[pool_name]["resources"], types[pool_name]["min_workers"]
            gpus = pool.tensor_parallel * pool.pipeline_parallel if pool.gpus is None else pool.gpus
            per_node = min(has["GPU"] // gpus, has["CPU"] // pool.cpus)
            assert pool.replicas <= per_node * nodes
