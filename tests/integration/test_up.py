"""`baton up` as users run it, with real engines: two Ray nodes, prefill on one and decode on the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.ray_processes import ROOT, TwoNodes, all_gone, parent_of, tree, two_nodes, words_of

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.slow]

PROMPT = "ROMEO:\nBut, soft! what light through yonder window breaks? " * 20


@pytest.fixture(scope="module")
def ray() -> Iterator[TwoNodes]:
    with two_nodes("prefill_capable", "decode_capable") as started:
        yield started


def baton(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of the checkout."""
    environment = {**os.environ, "BATON_STATE_DIR": str(state)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(ROOT / "baton.py"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT)


@pytest.fixture(scope="module")
def up(ray: TwoNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    state = tmp_path_factory.mktemp("state")
    small = ("pools.prefill.kv_cache_mb=64", "pools.decode.kv_cache_mb=64", "router.port=0")
    settings = [part for one in (f"ray.address={ray.address}", *small) for part in ("--set", one)]
    try:
        done = baton(state, "up", "deploy/slo.yaml", "--json", *settings)
        assert done.returncode == 0, done.stdout + done.stderr
        yield state, json.loads(done.stdout)
    finally:
        baton(state, "down")


def test_engines_run_on_the_nodes_of_their_pools(ray: TwoNodes, up: tuple[Path, dict[str, Any]]) -> None:
    def workers_below(pid: int) -> set[str]:
        lines = [words_of(child) for child in tree(pid)]
        specs = [words[words.index("--spec") + 1] for words in lines if "cluster.worker_process" in words]
        return {Path(spec).name.removesuffix(".spec.json") for spec in specs}

    assert workers_below(ray.head.pid) == {"prefill-0"}
    assert workers_below(ray.second.pid) == {"decode-0"}


def test_a_completion_goes_through_both_nodes(up: tuple[Path, dict[str, Any]]) -> None:
    url = up[1]["url"]
    body = {"model": "baton-demo", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] > 0
    text = httpx.get(f"{url}/workers/decode-0/metrics", timeout=30).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    landed = [s.value for s in families["baton_kv_receives"].samples if s.labels.get("outcome") == "landed"]
    assert landed[0] >= 1


def test_status_names_pools_nodes_and_load(up: tuple[Path, dict[str, Any]]) -> None:
    done = baton(up[0], "status", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    status = json.loads(done.stdout)
    assert {member["name"]: member["state"] for member in status["members"]} == {
        "prefill-0": "ready",
        "decode-0": "ready",
        "router": "ready",
    }
    fingerprints = {member["fingerprint"] for member in status["members"] if member["role"] in ("prefill", "decode")}
    assert len(fingerprints) == 1
    assert status["health"] == "ok"


def test_down_stops_it_and_leaves_ray_alive(ray: TwoNodes, up: tuple[Path, dict[str, Any]]) -> None:
    ours = [
        pid
        for node in (ray.head, ray.second)
        for pid in tree(node.pid)
        if any("cluster." in word for word in words_of(pid))
    ]
    # Two workers and the router; what they fork carries their name until it has one of its own, as engine cores do.
    assert len([pid for pid in ours if parent_of(pid) not in ours]) == 3
    assert baton(up[0], "down").returncode == 0
    assert all_gone(ours)
    assert ray.alive
    assert baton(up[0], "status").returncode == 1
