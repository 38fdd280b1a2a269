"""The console as a router serves it: the page to anybody, its events to who has a key."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.cluster_token import operator_key
from core.errors import Overloaded
from router.console.feed import ConsoleFeed
from router.console.routes import _FILES, HEADERS
from router.tenants import digest_of
from tests.support.router_site import TOKEN, Site

PROMPT = {"prompt": "the sea was calm", "max_tokens": 5, "stream": True}
KEY_A, KEY_B = "key-of-a", "key-of-b"
WAIT_S = 20.0


@asynccontextmanager
async def watching(client: httpx.AsyncClient, key: str = "") -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with client.stream("GET", "/console/events", headers=headers) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-store"
        yield _events(reply)


async def _events(reply: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in reply.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[Site]:
    """A router whose two tenants have a key each, and an operator."""
    lines = "".join(f"  {n}: {{keys: ['{digest_of(k).hex()}']}}\n" for n, k in (("a", KEY_A), ("b", KEY_B)))
    file = tmp_path / "tenants.yaml"
    file.write_text(f"tenants:\n{lines}")
    site = Site()
    await site.start_router(tenants_file=str(file), token=TOKEN)
    await site.add_worker("prefill-0")
    await site.add_worker("decode-0")
    yield site
    await site.stop()


async def test_the_page_asks_for_nothing_from_elsewhere_and_runs_nothing_inline(client: httpx.AsyncClient) -> None:
    for path, (_, kind) in _FILES.items():
        reply = await client.get(path)
        assert (reply.status_code, reply.headers["content-type"]) == (200, kind)
        assert HEADERS.items() <= dict(reply.headers).items()
        assert (await client.head(path)).status_code == 200
        elsewhere = set(re.findall(r"(?:https?:)?//[\w.]+", reply.text)) - {"http://www.w3.org"}
        assert not {e for e in elsewhere if "." in e}, path
        assert not re.search(r"\.(?:innerHTML|outerHTML)|insertAdjacentHTML|document\.write|\beval\(", reply.text), path
    page = (await client.get("/console")).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|style=", page)
    referred = set(re.findall(r'(?:src|href)="(console/[^"]+)"', page))
    assert {f"/{name}" for name in referred} <= set(_FILES)
    assert "unsafe" not in HEADERS["content-security-policy"]


async def test_every_module_that_the_page_imports_is_served(client: httpx.AsyncClient) -> None:
    for path, (_, kind) in _FILES.items():
        if "javascript" not in kind:
            continue
        for name in re.findall(r'from "\./([\w.]+)"', (await client.get(path)).text):
            assert f"/console/{name}" in _FILES


async def test_without_keys_everybody_sees_all(pair: Site, client: httpx.AsyncClient) -> None:
    await client.post("/v1/completions", json=PROMPT, headers={"x-request-id": "r1"})
    async with watching(client) as events:
        name, hello = await anext(events)
        assert (name, hello["tenant"]) == ("hello", None)
        name, update = await anext(events)
        assert (name, update["health"]["status"]) == ("update", "ok")
        assert [w["id"] for w in update["workers"]] == ["prefill-0", "decode-0"]
        [request] = update["requests"]
        assert (request["id"], request["state"], request["decode"]) == ("r1", "kept", "decode-0")
        assert update["classes"][0]["hour"]["kept"] == 1
        assert update["transfers"] == []


async def test_events_need_a_key_where_keys_are_asked_for(keyed: Site) -> None:
    async with httpx.AsyncClient(base_url=keyed.url, timeout=WAIT_S) as client:
        assert (await client.get("/console")).status_code == 200
        assert (await client.get("/console/events")).status_code == 401
        assert (await client.get("/console/events", headers={"authorization": "Bearer no"})).status_code == 401
        for number, key in enumerate((KEY_A, KEY_B)):
            headers = {"authorization": f"Bearer {key}", "x-request-id": f"r{number}"}
            assert (await client.post("/v1/completions", json=PROMPT, headers=headers)).status_code == 200
        seen = {}
        for key in (KEY_A, KEY_B, operator_key(TOKEN)):
            async with watching(client, key) as events:
                await anext(events)
                seen[key] = (await anext(events))[1]
    assert [[r["id"] for r in told["requests"]] for told in seen.values()] == [["r0"], ["r1"], ["r1", "r0"]]
    assert ["workers" in told for told in seen.values()] == [False, False, True]
    assert [told["classes"][0]["now"]["kept"] for told in seen.values()] == [1, 1, 2]


async def test_a_hand_over_is_shown_while_it_runs(tight: Site) -> None:
    async with httpx.AsyncClient(base_url=tight.url, timeout=WAIT_S) as client:
        asked = asyncio.create_task(client.post("/v1/completions", json=PROMPT))
        async with watching(client) as events:
            await anext(events)
            await anext(events)
        await asked
        await tight.until_idle()
        async with watching(client) as events:
            await anext(events)
            _, update = await anext(events)
    assert (update["transfers"], update["inflight"]) == ([], 0)
    assert update["requests"][0]["state"] == "missed"


async def test_one_more_than_may_watch_is_told_so(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: ConsoleFeed) -> None:
        raise Overloaded("16 consoles are open")

    monkeypatch.setattr(ConsoleFeed, "check_room", full)
    reply = await client.get("/console/events")
    assert (reply.status_code, reply.json()["error"]["type"]) == (429, "overloaded")
    assert reply.headers["retry-after"] == "5"


async def test_a_router_that_stops_does_not_wait_for_its_watchers(client: httpx.AsyncClient) -> None:
    site = Site()
    await site.start_router()
    async with httpx.AsyncClient(base_url=site.url, timeout=WAIT_S) as own, watching(own) as events:
        await anext(events)
        async with asyncio.timeout(WAIT_S):
            await site.stop()
        assert [name async for name, _ in events] in ([], ["update"])
