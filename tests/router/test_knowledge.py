"""What a router learns of requests, through the front: prefix caches, token lengths, tenants and their limits."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import yaml

from core.types import ClusterView, Decision, RequestShape
from tests.support.router_site import WAIT_S, Site

PROMPT = "the sea was calm and the ships lay still in the harbour. " * 40
KEYS = {"acme": "baton-key-of-acme", "tiny": "baton-key-of-tiny", "terse": "baton-key-of-terse"}


class Listening:
    """Decides as the policy behind it does, and keeps what it was asked."""

    def __init__(self, site: Site) -> None:
        self._policy = site.router._policy._policy
        site.router._policy._policy = self
        self.asked: list[RequestShape] = []

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        self.asked.append(request)
        return self._policy.decide(request, cluster, now_s)


@pytest.fixture
async def cached_pair(site: Site) -> Site:
    """A pair whose engines have prefix caches."""
    for worker_id in ("prefill-0", "decode-0"):
        await site.add_worker(worker_id, "--cached-blocks", "64")
    return site


async def test_prompts_seen_are_believed_in_caches(cached_pair: Site, client: httpx.AsyncClient) -> None:
    heard = Listening(cached_pair)
    for salt in ("", "", "other"):
        body = {"prompt": PROMPT, "max_tokens": 2} | ({"cache_salt": salt} if salt else {})
        assert (await client.post("/v1/completions", json=body)).status_code == 200
    first, second, salted = heard.asked
    assert first.cached == salted.cached == ()
    assert [worker_id for worker_id, _ in second.cached] == ["decode-0", "prefill-0"]
    assert all(0 < tokens <= second.prompt_tokens for _, tokens in second.cached)


async def test_token_lengths_are_learnt(cached_pair: Site, client: httpx.AsyncClient) -> None:
    heard = Listening(cached_pair)
    counted = 0
    for number in range(12):
        reply = await client.post("/v1/completions", json={"prompt": f"{number} {PROMPT}", "max_tokens": 1})
        counted = reply.json()["usage"]["prompt_tokens"]
    first, last = (abs(shape.prompt_tokens - counted) for shape in (heard.asked[0], heard.asked[-1]))
    assert last < first or first == 0


async def test_a_worker_that_left_is_believed_to_have_nothing(cached_pair: Site, client: httpx.AsyncClient) -> None:
    heard = Listening(cached_pair)
    body = {"prompt": PROMPT, "max_tokens": 2}
    await client.post("/v1/completions", json=body)
    await cached_pair.workers.pop("prefill-0").kill()
    cached_pair.announced.set(*(w.record for w in cached_pair.workers.values()))
    await cached_pair.until(lambda: cached_pair.connected() == {"decode-0"})
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    assert [worker_id for worker_id, _ in heard.asked[-1].cached] == ["decode-0"]


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[tuple[Site, httpx.AsyncClient]]:
    """A router that asks for keys, with one worker."""
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    tenants: dict[str, object] = {
        "acme": {"keys": [digests["acme"]], "weight": 2},
        "tiny": {"keys": [digests["tiny"]], "requests_per_minute": 6, "classes": ["interactive"]},
        "terse": {"keys": [digests["terse"]], "tokens_per_minute": 600},
    }
    file = tmp_path / "tenants.yaml"
    file.write_text(yaml.safe_dump({"tenants": tenants}))
    site = Site()
    await site.start_router(tenants_file=str(file))
    await site.add_worker("decode-0")
    async with httpx.AsyncClient(base_url=site.url, timeout=WAIT_S) as client:
        yield site, client
    await site.stop()


def key(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[tenant]}"}


async def test_keys_open_the_door(guarded: tuple[Site, httpx.AsyncClient]) -> None:
    site, client = guarded
    heard = Listening(site)
    body = {"prompt": PROMPT, "max_tokens": 2}
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic x"}):
        refused = await client.post("/v1/completions", json=body, headers=headers)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert KEYS["acme"] not in refused.text
    assert not heard.asked
    assert (await client.post("/v1/completions", json=body, headers=key("acme"))).status_code == 200
    assert (await client.post("/v1/completions", json=body, headers={"x-api-key": KEYS["tiny"]})).status_code == 200
    assert [shape.tenant for shape in heard.asked] == ["acme", "tiny"]
    assert heard.asked[1].cached == ()  # what acme's prompt left in the caches is acme's
    assert await site.metric("baton_tenant_requests_total", tenant="acme") == 1
    assert (await client.get("/v1/models")).status_code == 401


async def test_tenant_is_held_to_its_limit_and_others_are_not(guarded: tuple[Site, httpx.AsyncClient]) -> None:
    _, client = guarded
    body = {"prompt": "a", "max_tokens": 1}
    replies = [await client.post("/v1/completions", json=body, headers=key("tiny")) for _ in range(3)]
    assert replies[0].status_code == 200
    assert replies[-1].status_code == 429
    assert replies[-1].json()["error"]["type"] == "rate_limited"
    assert 0 < replies[-1].json()["error"]["earliest_feasible_ms"] <= 10_000
    assert (await client.post("/v1/completions", json=body, headers=key("acme"))).status_code == 200


async def test_leaving_early_is_no_way_around_a_limit(guarded: tuple[Site, httpx.AsyncClient]) -> None:
    site, client = guarded
    body = {"prompt": PROMPT, "max_tokens": 2000, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body, headers=key("terse")) as reply:
        assert reply.status_code == 200
        async for _ in reply.aiter_bytes():
            break
    await site.until_idle()
    refused = await client.post("/v1/completions", json={"prompt": "a"}, headers=key("terse"))
    assert refused.status_code == 429


async def test_tenant_is_told_of_its_own_requests_only(guarded: tuple[Site, httpx.AsyncClient]) -> None:
    _, client = guarded
    body, name = {"prompt": "a", "max_tokens": 1}, {"x-request-id": "mine"}
    await client.post("/v1/completions", json=body, headers=key("acme") | name)
    assert (await client.get("/v1/requests/mine/explain", headers=key("acme"))).status_code == 200
    assert (await client.get("/v1/requests/mine/explain", headers=key("tiny"))).status_code == 404
    assert (await client.get("/v1/requests/mine/explain")).status_code == 401
