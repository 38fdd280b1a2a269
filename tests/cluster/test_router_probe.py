"""What a router that runs says of itself to the commands that ask it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.front import Front
from cluster.router_probe import ask_router, complete_once
from core.cluster_token import operator_key
from core.errors import StartFailed
from core.policy.context import ClassTarget
from router.keys import new_key
from tests.support.contexts import context
from tests.support.router_site import MODEL, WAIT_S, Site


@asynccontextmanager
async def pair(**router: Any) -> AsyncIterator[Site]:
    site = Site()
    await site.start_router(**router)
    try:
        for worker_id in ("prefill-0", "decode-0"):
            await site.add_worker(worker_id)
        yield site
    finally:
        await site.stop()


async def test_a_completion_proves_that_requests_are_served() -> None:
    async with pair() as site:
        assert await asyncio.to_thread(complete_once, Front(site.url), MODEL, WAIT_S) > 0


async def test_a_promise_that_the_router_refuses_to_everyone_comes_with_a_remedy() -> None:
    hopeless = context(admit_by_ttft=True, targets={"interactive": ClassTarget(0.001, 0.05)})
    async with pair(policy="slo-aware", policy_context=hopeless) as site:
        with pytest.raises(StartFailed, match=r"got 429: .*the prompt alone takes longer.*; change slo\.classes, or"):
            await asyncio.to_thread(complete_once, Front(site.url), MODEL, WAIT_S)


@pytest.mark.parametrize(("token", "is_served"), [("secret", True), ("another", False)])
async def test_a_router_that_asks_for_keys_serves_its_operator(token: str, is_served: bool, tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(f"tenants: {{acme: {{keys: ['{new_key('acme').sha256}'], requests_per_minute: 1}}}}")
    async with pair(tenants_file=str(file), token="secret") as site:
        front = Front(site.url, key=operator_key(token))
        if is_served:
            assert await asyncio.to_thread(complete_once, front, MODEL, WAIT_S) > 0
        else:
            with pytest.raises(StartFailed, match="got 401"):
                await asyncio.to_thread(complete_once, front, MODEL, WAIT_S)
        report = await asyncio.to_thread(ask_router, front)
        assert (report.health, report.loads.keys()) == ("ok", {"prefill-0", "decode-0"})
