"""Pairs of workers that answer, or do not answer, as decode alone does, and what clients see meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from core.engine import HttpCall, ReplySink
from core.errors import EngineFailed
from core.router_spec import SLOTarget
from core.types import LegFacts
from tests.support.router_site import WAIT_S, Script, Site

JSON = (("content-type", "application/json"),)
PAIR = ("prefill-0", "decode-0")


def answering(token: str, *, kv_token: str | None = None, received: int = 80, status: int = 200) -> Script:
    """Answer with one token; a leg that received KV with another, if one is given."""

    async def script(call: HttpCall, sink: ReplySink) -> None:
        body = json.loads(call.body)
        is_decode = "do_remote_prefill" in (body.get("kv_transfer_params") or {})
        said = kv_token if is_decode and kv_token else token
        logprobs = {"tokens": [said], "top_logprobs": [{said: -0.1, "other": -3.0}]}
        choice = {"index": 0, "text": said, "finish_reason": "length", "logprobs": logprobs}
        sink.start(status, JSON)
        sink.body(json.dumps({"choices": [choice], "usage": {"completion_tokens": 1}}).encode())
        sink.facts(LegFacts(96, 0, received if is_decode else 0))

    return script


async def status_of(client: httpx.AsyncClient) -> dict[str, Any]:
    return (await client.get("/status")).json()


async def settled(site: Site, client: httpx.AsyncClient, num_pairs: int = 1) -> dict[str, Any]:
    """Wait until so many pairs have had their first test."""
    async with asyncio.timeout(WAIT_S):
        while True:
            status = await status_of(client)
            tested = [pair for pair in status["other_pairs"] if pair["state"] != "untested"]
            if status["trusted_pairs"] + len(tested) == num_pairs:
                return status
            await site.pool.wait_changed(0.02)


async def served_by(client: httpx.AsyncClient, site: Site) -> list[str]:
    """Name the workers that one request goes to."""
    before = {name: len(worker.engine.calls) for name, worker in site.workers.items()}
    assert (await client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})).status_code == 200
    await site.until_idle()
    return sorted(name for name, worker in site.workers.items() if len(worker.engine.calls) > before[name])


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A router that tests pairs."""
    site = Site()
    await site.start_router(self_test=True, slo_classes=(SLOTarget("interactive", ttft_s=20.0, tpot_s=5.0),))
    yield site
    await site.stop()


async def test_a_pair_that_agrees_is_used(site: Site, client: httpx.AsyncClient) -> None:
    for name in PAIR:
        await site.add_worker(name, script=answering("a"))
    assert await settled(site, client) | {"classes": 0} == {
        "held_requests": 0,
        "classes": 0,
        "trusted_pairs": 1,
        "other_pairs": [],
    }
    tests = [json.loads(call.body) for call in site.workers["decode-0"].engine.calls]
    assert len({body["cache_salt"] for body in tests}) == len(tests) == 4  # nothing is found in a prefix cache
    assert await served_by(client, site) == ["decode-0", "prefill-0"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (answering("a", kv_token="z"), "token 1 is 'z' of the pair"),
        (answering("a", received=0), "no KV came over"),
    ],
    ids=["differs", "recomputed"],
)
async def test_a_pair_that_disagrees_is_not_used_and_says_why(
    site: Site, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, script: Script, why: str
) -> None:
    for name in PAIR:
        await site.add_worker(name, script=script)
    status = await settled(site, client)
    (pair,) = status["other_pairs"]
    assert (pair["prefill"], pair["decode"], pair["state"]) == (*PAIR, "failed")
    assert why in pair["reason"]
    assert 0 < pair["retry_in_s"] <= 30
    assert any(why in record.getMessage() for record in caplog.records)
    assert await served_by(client, site) == ["decode-0"]


async def test_requests_go_past_a_bad_pair_to_a_good_one(site: Site, client: httpx.AsyncClient) -> None:
    await site.add_worker("prefill-0", script=answering("a"))
    await site.add_worker("decode-0", script=answering("a", kv_token="z"))
    await settled(site, client)
    await site.add_worker("decode-1", script=answering("a"))
    assert (await settled(site, client, 2))["trusted_pairs"] == 1
    for _ in range(3):
        assert await served_by(client, site) == ["decode-1", "prefill-0"]


async def test_a_worker_that_fails_its_test_is_no_error_of_the_router(site: Site, client: httpx.AsyncClient) -> None:
    async def broken(call: HttpCall, sink: ReplySink) -> None:
        raise EngineFailed("broken on purpose")

    await site.add_worker("prefill-0", script=broken)
    await site.add_worker("decode-0", script=answering("a"))
    (pair,) = (await settled(site, client))["other_pairs"]
    assert "broken on purpose" in pair["reason"]


async def test_a_model_that_completes_nothing_is_not_tested(site: Site, client: httpx.AsyncClient) -> None:
    for name in PAIR:
        await site.add_worker(name, script=answering("a", status=404))
    assert (await settled(site, client))["trusted_pairs"] == 1
    assert site.workers["prefill-0"].engine.calls == []


async def test_simulated_engines_are_not_tested(site: Site, client: httpx.AsyncClient) -> None:
    for name in PAIR:
        await site.add_worker(name)
    assert (await settled(site, client))["trusted_pairs"] == 1
    assert site.workers["decode-0"].engine.calls == []
    assert await served_by(client, site) == ["decode-0", "prefill-0"]
