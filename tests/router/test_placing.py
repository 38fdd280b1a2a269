"""Requests that wait in the router: let go when there is room, in order, and never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from core.policy.least_loaded import LeastLoaded
from core.types import ClusterView, Decision, Hold, Rejection, RequestShape
from tests.support.router_site import TOKEN, WAIT_S, Site

LONG = {"prompt": "the sea was calm", "max_tokens": 200}
UNLUCKY = {"prompt": "the sea was calm", "max_tokens": 13}  # the policy fails on it once it is held
SHORT = {"prompt": "the sea was calm", "max_tokens": 2}


class OneAtATime:
    """Holds whatever comes while a request runs, by priority; refuses on demand. Keeps what it was asked."""

    def __init__(self) -> None:
        self._free = LeastLoaded()
        self.asked: list[RequestShape] = []
        self.views: list[ClusterView] = []
        self.refusal: Rejection | None = None
        self.hold_s = 60.0
        self.holds_all = False

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        is_held = any(request.request_id == earlier.request_id for earlier in self.asked)
        self.asked.append(request)
        self.views.append(cluster)
        if is_held and request.max_tokens == UNLUCKY["max_tokens"]:
            raise ZeroDivisionError("unlucky")
        if self.holds_all or any(worker.inflight_requests for worker in cluster.workers):
            if self.refusal is not None:
                return self.refusal
            return Hold("one at a time", now_s + self.hold_s, now_s - request.waited_s + 100.0 * request.priority)
        return self._free.decide(request, cluster, now_s)


@asynccontextmanager
async def single(policy: OneAtATime, **settings: Any) -> AsyncIterator[tuple[Site, httpx.AsyncClient]]:
    """A router with one worker that decides by `policy`."""
    site = Site()
    await site.start_router(**settings)
    site.router._policy._policy = policy
    await site.add_worker("decode-0")
    async with httpx.AsyncClient(base_url=site.url, timeout=WAIT_S) as client:
        try:
            yield site, client
            await site.until_idle()
            assert num_held(site) == 0
        finally:
            await site.stop()


@pytest.fixture
def policy() -> OneAtATime:
    return OneAtATime()


@pytest.fixture
async def site(policy: OneAtATime) -> AsyncIterator[Site]:
    async with single(policy) as (site, _):
        yield site


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=site.url, timeout=WAIT_S) as client:
        yield client


def send(client: httpx.AsyncClient, body: dict[str, object], **headers: str) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.post("/v1/completions", json=body, headers=headers))


async def running(site: Site, client: httpx.AsyncClient) -> asyncio.Task[httpx.Response]:
    """Start a request and wait until the worker has it."""
    task = send(client, LONG)
    await site.until(lambda: any(w.inflight_requests for w in site.pool.view().workers))
    return task


def num_held(site: Site) -> int:
    return site.router.dispatcher._placer.num_held


async def test_held_request_goes_when_there_is_room(site: Site, client: httpx.AsyncClient, policy: OneAtATime) -> None:
    first = await running(site, client)
    second = send(client, SHORT, **{"x-request-id": "second"})
    await site.until(lambda: num_held(site) == 1)
    assert await site.metric("baton_held_requests") == 1
    assert not second.done()
    assert [(await task).status_code for task in (first, second)] == [200, 200]
    assert num_held(site) == 0
    told = (await client.get("/v1/requests/second/explain")).json()
    assert told["holds"]
    assert [hold["reason"] for hold in told["holds"]] == ["one at a time"] * told["num_holds"]
    await site.until_idle()


async def test_held_requests_go_by_key(site: Site, client: httpx.AsyncClient, policy: OneAtATime) -> None:
    first = await running(site, client)
    ended: list[int] = []
    tasks = []
    for place, priority in enumerate((2, 0, 1), start=1):
        task = send(client, SHORT | {"priority": priority})
        task.add_done_callback(lambda _, priority=priority: ended.append(priority))
        tasks.append(task)
        await site.until(lambda place=place: num_held(site) == place)
    assert {(await task).status_code for task in (first, *tasks)} == {200}
    assert ended == [0, 1, 2]


async def test_policy_sees_what_is_held(site: Site, client: httpx.AsyncClient, policy: OneAtATime) -> None:
    first = await running(site, client)
    second = send(client, SHORT)
    await site.until(lambda: num_held(site) == 1)
    third = send(client, SHORT)
    await site.until(lambda: num_held(site) == 2)
    assert len(policy.views[-1].held.keys_s) == 1
    assert policy.views[-1].held.tokens_before == (0, policy.asked[-1].prompt_tokens)
    await asyncio.gather(first, second, third)


async def test_held_request_is_asked_about_again_in_time(
    site: Site, client: httpx.AsyncClient, policy: OneAtATime
) -> None:
    policy.hold_s = 0.01
    first = await running(site, client)
    second = send(client, SHORT)
    await site.until(lambda: len(policy.asked) >= 4)
    assert policy.asked[-1].waited_s > policy.asked[1].waited_s
    assert [(await task).status_code for task in (first, second)] == [200, 200]


async def test_client_that_leaves_frees_its_place(site: Site, client: httpx.AsyncClient, policy: OneAtATime) -> None:
    first = await running(site, client)
    second = send(client, SHORT)
    await site.until(lambda: num_held(site) == 1)
    second.cancel()
    await site.until(lambda: num_held(site) == 0)
    assert (await first).status_code == 200
    await site.until_idle()
    assert (await client.post("/v1/completions", json=SHORT)).status_code == 200


async def test_what_makes_no_tokens_is_neither_held_nor_refused(
    site: Site, client: httpx.AsyncClient, policy: OneAtATime
) -> None:
    policy.holds_all = True
    asked = len(policy.asked)
    assert (await client.get("/v1/models")).status_code == 200
    assert len(policy.asked) == asked


async def test_policy_that_fails_on_a_held_request_costs_only_that(
    site: Site, client: httpx.AsyncClient, policy: OneAtATime
) -> None:
    first = await running(site, client)
    unlucky = send(client, UNLUCKY)
    await site.until(lambda: num_held(site) == 1)
    others = [send(client, SHORT) for _ in range(3)]
    assert (await unlucky).status_code == 500
    assert {(await task).status_code for task in (first, *others)} == {200}


async def test_full_queue_refuses_the_last_in_turn(policy: OneAtATime) -> None:
    async with single(policy, max_held_requests=1) as (site, client):
        first = await running(site, client)
        second = send(client, SHORT | {"priority": 5})
        await site.until(lambda: num_held(site) == 1)
        third = send(client, SHORT | {"priority": 1})
        refused = await second
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "overloaded"
        assert [(await task).status_code for task in (first, third)] == [200, 200]


async def test_request_that_is_held_too_long_ends_by_its_deadline(policy: OneAtATime) -> None:
    policy.holds_all = True
    async with single(policy, request_timeout_s=0.1) as (_, client):
        assert (await send(client, SHORT)).status_code == 504


async def test_refused_request_comes_back_with_its_reservation(policy: OneAtATime) -> None:
    async with single(policy, token=TOKEN) as (site, client):
        policy.refusal = Rejection("overloaded", "full", 0.02, earliest_s=0.02, confidence=0.9)
        first = await running(site, client)
        refused = await send(client, SHORT)
        error = refused.json()["error"]
        assert (refused.status_code, error["confidence"]) == (429, 0.9)
        assert error["earliest_feasible_ms"] >= 20
        assert (await first).status_code == 200
        token = {"x-baton-reservation": refused.headers["x-baton-reservation"]}
        async with asyncio.timeout(WAIT_S):
            while not policy.asked[-1].is_reserved:  # too early leaves the token as it is
                assert len(policy.views[-1].promised.keys_s) <= 1
                assert (await send(client, SHORT, **token)).status_code == 200
        await send(client, SHORT, **token)
        assert not policy.asked[-1].is_reserved  # used up
        assert not policy.views[-1].promised.keys_s
