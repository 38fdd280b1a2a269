"""What a worker sends goes to the client at once, and what is wrong with it stays with the one request."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from core.engine import HttpCall, ReplySink
from core.errors import EngineFailed
from core.policy.least_loaded import LeastLoaded
from core.policy.protocol import Policy
from core.types import ClusterView, Decision, RequestShape
from tests.support.router_site import Script, Site

PROMPT = {"prompt": "the sea was calm", "max_tokens": 4}


def answering(*headers: tuple[str, str]) -> Script:
    async def answer(call: HttpCall, sink: ReplySink) -> None:
        sink.start(200, headers)
        sink.body(b"{}")

    return answer


@pytest.mark.parametrize(
    "bad",
    [("x-evil", "a\r\nset-cookie: b"), ("x evil", "a"), ("x-evil", "\u20ac")],
    ids=["split", "name", "no latin-1"],
)
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_header_that_is_none_fails_its_request_only(
    site: Site, client: httpx.AsyncClient, bad: tuple[str, str], kind: str
) -> None:
    decode = await site.add_worker("decode-0")
    decode.engine.script = answering(("content-type", kind), bad)
    reply = await client.post("/v1/completions", json=PROMPT)
    assert reply.status_code == 500
    assert "set-cookie" not in reply.headers
    decode.engine.script = None
    assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200
    await site.until_idle()


async def test_reply_without_body_is_a_response(site: Site, client: httpx.AsyncClient) -> None:
    async def silent(call: HttpCall, sink: ReplySink) -> None:
        sink.start(204, (("x-worker", "yes"), ("Connection", "upgrade"), ("Content-Length", "99")))

    (await site.add_worker("decode-0")).engine.script = silent
    reply = await client.post("/v1/completions", json=PROMPT)
    assert (reply.status_code, reply.headers["x-worker"]) == (204, "yes")
    assert not {"connection", "content-length"} & set(reply.headers)


async def test_chunks_of_a_step_reach_all_clients(site: Site, client: httpx.AsyncClient) -> None:
    """Fifty streams of one worker, whose tokens travel in common frames: each client gets its own, complete."""
    await site.add_worker("decode-0", max_num_seqs=64)
    bodies = [{"prompt": [i], "max_tokens": 1 + i % 7, "stream": True} for i in range(50)]
    replies = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
    for body, reply in zip(bodies, replies, strict=True):
        assert reply.content.count(b"data: ") == int(str(body["max_tokens"])) + 1
    await site.until_idle()


# -- breakers --------------------------------------------------------------------------------------------------------


async def breaker_of(client: httpx.AsyncClient, worker_id: str) -> str:
    workers = (await client.get("/workers")).json()["workers"]
    return next(str(w["breaker"]) for w in workers if w["worker_id"] == worker_id)


async def test_worker_that_fails_again_and_again_is_left_alone_until_it_is_well(
    site: Site, client: httpx.AsyncClient
) -> None:
    attempts = 0
    ill = True

    async def fail(call: HttpCall, sink: ReplySink) -> None:
        nonlocal attempts
        attempts += 1
        if ill:
            raise EngineFailed("broken on purpose")
        sink.start(200, (("content-type", "application/json"),))
        sink.body(b"{}")

    (await site.add_worker("decode-0")).engine.script = fail
    await site.add_worker("decode-1")
    while attempts < 3:
        assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200
    assert await breaker_of(client, "decode-0") == "open"
    for _ in range(10):
        assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200
    assert attempts == 3
    ill = False
    async with asyncio.timeout(10):
        while attempts == 3:
            await client.post("/v1/completions", json=PROMPT)
            await asyncio.sleep(0.05)
    assert await breaker_of(client, "decode-0") == "closed"


async def test_prefill_worker_that_fails_again_and_again_is_left_alone(pair: Site, client: httpx.AsyncClient) -> None:
    pair.workers["prefill-0"].engine.fail("broken on purpose")
    for _ in range(5):
        assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200
    assert await breaker_of(client, "prefill-0") == "open"
    assert len(pair.workers["prefill-0"].engine.calls) == 3


async def test_worker_that_fails_is_better_than_none(site: Site, client: httpx.AsyncClient) -> None:
    decode = await site.add_worker("decode-0")
    decode.engine.fail("broken on purpose")
    replies = [await client.post("/v1/completions", json=PROMPT) for _ in range(5)]
    assert [r.json()["error"]["type"] for r in replies] == ["engine_failed"] * 5
    assert len(decode.engine.calls) == 5


# -- what must not end the router ------------------------------------------------------------------------------------


class Faulty:
    """Fails on prompts it does not like."""

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        if request.max_tokens == 13:
            raise ZeroDivisionError("unlucky")
        return LeastLoaded().decide(request, cluster, now_s)


async def test_policy_that_fails_costs_its_request_only(pair: Site, client: httpx.AsyncClient) -> None:
    policy: Policy = Faulty()
    pair.router._policy._policy = policy
    reply = await client.post("/v1/completions", json=PROMPT | {"max_tokens": 13})
    assert reply.status_code == 500
    assert "unlucky" not in json.dumps(reply.json())
    assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200
    await pair.until_idle()
