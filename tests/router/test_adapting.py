"""A policy that follows what workers show: costs without a profile, and speeds with one."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from core.policy.context import ClassTarget, PolicyContext, PoolFacts
from core.types import Role
from router.adapting import AdaptingPolicy
from sim.replay import replay
from tests.support.contexts import COST
from tests.support.router_site import WAIT_S, Site
from tests.support.views import worker

TARGETS = {"interactive": ClassTarget(5.0, 1.0)}
MOST_ASKED = 200  # a frame tells of one step, so that a busy machine needs more requests to show the steps it takes
UNKNOWN = PolicyContext(pools={role: PoolFacts(None) for role in Role}, targets=TARGETS, may_hold=True)


async def test_costs_are_learnt_where_there_is_no_profile(tmp_path: Path) -> None:
    site = Site()
    await site.start_router(policy="slo-aware", policy_context=UNKNOWN, run_dir=str(tmp_path), event_log="events.jsonl")
    try:
        await site.add_worker("prefill-0")
        await site.add_worker("decode-0")
        async with httpx.AsyncClient(base_url=site.url, timeout=WAIT_S) as client:

            async def ask(name: str) -> dict[str, object]:
                body = {"prompt": "the sea was calm " * (20 + int(name[1:])), "max_tokens": 20}
                reply = await client.post("/v1/completions", json=body, headers={"x-request-id": name})
                assert reply.status_code == 200
                told: dict[str, object] = (await client.get(f"/v1/requests/{name}/explain")).json()
                return told

            asked = [await ask("r0")]
            while asked[-1]["predicted_ttft"] is None and len(asked) < MOST_ASKED:
                site.router._policy.adapt()
                asked.append(await ask(f"r{len(asked)}"))
        assert asked[0]["predicted_ttft"] is None
        assert asked[-1]["predicted_ttft"] is not None
        await site.until_idle()
    finally:
        await site.stop()
    found = replay(tmp_path / "events.jsonl")
    assert found.agrees
    assert found.decisions == len(asked)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    opened = [json.loads(line)["context"] for line in lines if '"event":"log"' in line]
    learnt = [context["pools"]["decode"]["cost"] is not None for context in opened]
    assert (learnt[0], learnt[-1]) == (False, True)
    assert learnt == sorted(learnt)  # what was learnt is not lost


def test_steps_slower_than_predicted_are_told() -> None:
    known = PolicyContext(pools={role: PoolFacts(COST) for role in Role}, targets=TARGETS)
    policy = AdaptingPolicy("slo-aware", known)
    expected_s = COST.decode_s(4, 16 * 32)
    view = worker("d0", Role.DECODE, num_running=4, kv_blocks_used=16, step_s=2 * expected_s, step_seqs=4)
    assert view.hello.fingerprint.block_size == 32
    speeds = [policy.stepped(view.record, view.hello, view.state) for _ in range(20)]
    assert speeds[0].decode_factor == 1.0
    assert abs(speeds[-1].decode_factor - 2.0) < 0.05


def test_a_restarted_worker_begins_anew() -> None:
    known = PolicyContext(pools={role: PoolFacts(COST) for role in Role}, targets=TARGETS)
    policy = AdaptingPolicy("slo-aware", known)
    view = worker("d0", Role.DECODE, num_running=4, kv_blocks_used=16, step_s=1.0, step_seqs=4)
    for _ in range(20):
        policy.stepped(view.record, view.hello, view.state)
    again = type(view.record)("d0", Role.DECODE, view.record.epoch + 1, "", "")
    assert policy.stepped(again, view.hello, view.state).decode_factor == 1.0
