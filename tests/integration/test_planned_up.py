"""From a profile to serving: `up` with the shipped example of planned pools, the real planner and simulated engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from core.latency.profile import EngineProfile, ShapeProfile, profile_to_json
from core.latency.step import StepCost, Table
from tests.support.ray_processes import ROOT, Baton

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COST = StepCost(
    dense=Table.line(0.01, 0.0005),
    pair=Table.constant(1e-8),
    decode_fixed=Table.line(0.01, 0.001),
    decode_context=Table.constant(1e-7),
)
# A short recording keeps the search short; the planner wants 200 requests at least.
TRACE = "arrived_s,prompt_tokens,output_tokens\n" + "".join(f"{i},{200 + 7 * (i % 13)},20\n" for i in range(240))
AUTO = f"--config={ROOT / 'deploy' / 'examples' / 'auto.yaml'}"


@pytest.fixture
def baton(tmp_path: Path) -> Iterator[Baton]:
    made = Baton.in_folder(tmp_path)
    yield made
    made.run("down")


@pytest.fixture
def words(tmp_path: Path) -> tuple[str, ...]:
    """What a user changes of the example: the profile, and recorded traffic instead of a kind of it."""
    shape = ShapeProfile(1, 1, COST, kv_capacity_tokens=50_000, prefill_error=0.03, decode_error=0.03)
    profile = EngineProfile("demo", "cpu", "simulated", "made for this test", (shape,), kv_bytes_per_token=2048)
    (tmp_path / "profile.json").write_text(profile_to_json(profile))
    (tmp_path / "trace.csv").write_text(TRACE)
    files = (f"plan.profile={tmp_path}/profile.json", f"plan.trace={tmp_path}/trace.csv", "plan.workload=")
    return ("ray.address=local", AUTO, "--planner=real", *files, "plan.rate=0.5")


def test_the_plan_is_started_and_serves(baton: Baton, words: tuple[str, ...]) -> None:
    up = baton.result("up", *words)
    plan = json.loads((Path(up["run_dir"]) / "plan.json").read_text())
    assert up["plan"]
    assert {m["role"] for m in up["members"]} >= {"decode"}
    planned = {role: pool["replicas"] for role, pool in plan["pools"].items()}
    started = {role: sum(m["role"] == role for m in up["members"]) for role in ("prefill", "decode")}
    assert started == planned
    body = {"model": "demo", "prompt": "To be", "max_tokens": 3}
    assert httpx.post(f"{up['url']}/v1/completions", json=body, timeout=30).status_code == 200
    assert baton.result("status")["plan"] == up["plan"]


def test_a_promise_that_no_pools_keep_is_refused_with_one_that_they_would(baton: Baton, words: tuple[str, ...]) -> None:
    impossible = "slo.classes={interactive: {ttft_ms: 20, tpot_ms: 1}}"
    refused = baton.run("up", *words, impossible)
    assert refused.returncode == 2, refused.stderr
    assert "keep the promise" in refused.stderr
    assert "interactive" in refused.stderr
    assert baton.record() is None
