"""Real engines change their role while they serve, and come back when they die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.ray_processes import ROOT
from tests.support.steady_load import steady_load

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.slow]

MODEL = "baton-demo"
BACK_S = 120.0
SETTINGS = (
    "ray.address=local",
    "router.port=0",
    "router.admission=false",
    "pools.decode.replicas=2",
    "pools.prefill.kv_cache_mb=64",
    "pools.decode.kv_cache_mb=64",
    "pools.prefill.cpus=0.5",
    "pools.decode.cpus=0.5",
)


def baton(state: Path, *words: str) -> dict[str, Any]:
    """Run the command line of the checkout; it must succeed."""
    environment = {**os.environ, "BATON_STATE_DIR": str(state)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(ROOT / "baton.py"), *words, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    state = tmp_path_factory.mktemp("state")
    try:
        settings = [part for one in SETTINGS for part in ("--set", one)]
        yield state, baton(state, "up", "deploy/slo.yaml", *settings)["url"]
    finally:
        baton(state, "down")


def serving(url: str) -> dict[str, dict[str, Any]]:
    return {w["worker_id"]: w for w in httpx.get(url + "/workers", timeout=30).json()["workers"]}


def sent_bytes(url: str, worker_id: str) -> float:
    """Count the bytes of KV that a worker has handed over."""
    text = httpx.get(f"{url}/workers/{worker_id}/metrics", timeout=30).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return float(families["baton_kv_sent_bytes"].samples[0].value)


def test_a_flip_takes_seconds_and_drops_no_request(up: tuple[Path, str]) -> None:
    state, url = up
    pid = next(m["pid"] for m in baton(state, "status")["members"] if m["name"] == "decode-1")
    with steady_load(url, clients=2, model=MODEL) as answers:
        began_s = time.monotonic()
        flipped = baton(state, "flip", "decode-1", "prefill")
        deadline_s = time.monotonic() + BACK_S
        while not sent_bytes(url, "decode-1"):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)  # the worker tells nobody of its hand-overs
        took_s = time.monotonic() - began_s
    assert answers.failures == []
    assert len(answers.ok) >= 4
    assert serving(url)["decode-1"]["role"] == "prefill"
    assert flipped["took_s"] < took_s
    members = {m["name"]: m for m in baton(state, "status")["members"]}
    assert members["decode-1"]["pid"] == pid
    assert any("is a prefill worker" in e["what"] for e in baton(state, "status")["events"])


def test_a_killed_engine_comes_back_under_a_new_epoch(up: tuple[Path, str]) -> None:
    state, url = up
    before = next(m for m in baton(state, "status")["members"] if m["name"] == "prefill-0")
    os.kill(before["pid"], signal.SIGKILL)
    body = {"model": MODEL, "prompt": "To be", "max_tokens": 4}
    assert httpx.post(url + "/v1/completions", json=body, timeout=60).status_code == 200
    deadline_s = time.monotonic() + BACK_S
    while serving(url).get("prefill-0", {"epoch": 0})["epoch"] <= before["epoch"]:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)  # the router tells nobody of its workers
    assert httpx.post(url + "/v1/completions", json=body, timeout=60).status_code == 200
