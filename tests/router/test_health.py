"""Readiness through the life of a cluster."""

from __future__ import annotations

import httpx

from core.types import ClusterView, Role
from router.health import Readiness
from tests.support.router_site import Site
from tests.support.views import worker

PROMPT = {"prompt": "the sea was calm"}


async def test_health_follows_the_cluster(site: Site, client: httpx.AsyncClient) -> None:
    async def health(expected_code: int, path: str = "/health") -> dict[str, object]:
        reply = await client.get(path)
        assert reply.status_code == expected_code
        assert ("retry-after" in reply.headers) == (expected_code == 503)
        body: dict[str, object] = reply.json()
        assert body["reason"]
        return body

    assert (await health(503))["status"] == "starting"
    decode = await site.add_worker("decode-0")
    half = await health(503)
    assert (half["status"], half["decode_workers"]) == ("starting", 1)
    assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200  # served, though not yet ready

    await site.add_worker("prefill-1", block_size=64)
    unlike = await health(503)
    assert "prefill-1 and decode-0 differ in block_size" in str(unlike["reason"])

    await site.add_worker("prefill-0")
    assert (await health(200))["status"] == "ok"
    assert (await health(200, "/ready"))["prefill_workers"] == 2

    await decode.kill()
    await site.until(lambda: "decode-0" not in site.connected())
    degraded = await health(200)
    assert degraded["status"] == "degraded"
    assert "no decode worker" in str(degraded["reason"])
    assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200

    for worker_id in ("prefill-0", "prefill-1"):
        await site.workers[worker_id].kill()
    await site.until(lambda: not site.connected())
    assert (await health(503))["status"] == "unavailable"
    assert (await client.get("/live")).json() == {"status": "ok"}


def test_one_pool_is_ready_with_any_of_its_workers() -> None:
    view = ClusterView()
    readiness = Readiness(lambda: view, one_pool=True)
    assert readiness.check().status == "starting"
    view = ClusterView((worker("decode-0", Role.DECODE),))
    assert readiness.check().status == "ok"
    assert readiness.check().reason == "a worker of the one pool is connected"
    view = ClusterView((worker("decode-0", Role.DECODE, draining=True),))
    assert readiness.check().status == "unavailable"
    assert Readiness(lambda: ClusterView((worker("decode-0", Role.DECODE),))).check().status == "starting"


async def test_head_requests_are_answered(pair: Site, client: httpx.AsyncClient) -> None:
    for path in ("/health", "/ready", "/live"):
        reply = await client.head(path)
        assert (reply.status_code, reply.content) == (200, b"")
