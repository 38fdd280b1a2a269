"""`up` with planned pools and with one pool, each on a Ray of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.ray_processes import Baton

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def baton(tmp_path: Path) -> Iterator[Baton]:
    made = Baton.in_folder(tmp_path)
    yield made
    made.run("down")


def complete(url: str, prompt: str) -> httpx.Response:
    body = {"model": "demo", "prompt": prompt, "max_tokens": 3}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=30)


def test_planned_pools_are_started_served_and_shown(baton: Baton) -> None:
    words = ("ray.address=local", "pools=auto", "plan.cpus=0.25", "router.event_log=decisions.jsonl")
    up = baton.run("up", *words, "--planner=rest-decode", "--json")
    assert up.returncode == 0, up.stderr
    answer = json.loads(up.stdout)
    workers = [m["name"] for m in answer["members"] if m["role"]]
    assert workers == ["prefill-0", *(f"decode-{i}" for i in range(len(workers) - 1))]
    assert answer["plan"] == [f"one prefill worker, {len(workers) - 1} decode", "seen: 1 nodes"]
    assert "pools for 1 node with" in up.stderr
    assert json.loads((Path(answer["run_dir"]) / "plan.json").read_text()) == {"decode": len(workers) - 1}
    assert baton.result("status")["plan"] == answer["plan"]
    assert f"planned: {answer['plan'][0]}\n  seen: 1 nodes" in baton.run("status").stdout
    assert complete(answer["url"], "To be").status_code == 200
    assert complete(answer["url"], "To be, or not to be: " * 20).status_code == 200
    baton.result("down")
    lines = [json.loads(line) for line in (Path(answer["run_dir"]) / "decisions.jsonl").read_text().splitlines()]
    short, long = (
        line["route"] for line in lines if line["event"] == "decision" and line["request"]["max_tokens"] == 3
    )
    assert (short["prefill"], short["reason"]) == (None, "at most 32 prompt tokens")
    assert long["prefill"] == "prefill-0"


def test_one_pool_serves_without_a_prefill_worker(baton: Baton) -> None:
    up = baton.result("up", "ray.address=local", "pools.prefill.replicas=0")
    assert [m["name"] for m in up["members"]] == ["decode-0", "router"]
    assert up["plan"] == []
    assert complete(up["url"], "To be").status_code == 200
    status = baton.result("status")
    assert (status["health"], status["health_reason"]) == ("ok", "a worker of the one pool is connected")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--planner=nothing-fits",), "interactive.ttft_ms binds; 2500 can be kept"),
        ((), "pools: auto: no planner is at hand"),
        (("--planner=rest-decode", "plan.profile=/no/profile.json"), "plan.profile: there is no file /no/profile.json"),
        (("--planner=rest-decode", "plan.cpus=1000"), "pools.prefill: worker 1 of 1 fits on no node"),
    ],
)
def test_what_cannot_be_planned_starts_nothing(baton: Baton, words: tuple[str, ...], message: str) -> None:
    refused = baton.run("up", "ray.address=local", "pools=auto", *words)
    assert refused.returncode == 2, refused.stderr
    assert message in refused.stderr
    assert " ray " not in refused.stdout
    assert baton.record() is None
    assert not (baton.state_dir / "runs").exists()
