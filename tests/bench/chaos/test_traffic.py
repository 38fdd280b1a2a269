"""What clients of a chaos run call right, wrong, cut and hung, against servers that answer in each of these ways."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.chaos.traffic import Answer, Traffic, Verdict, count, make_load
from cluster.front import Front
from core.errors import StartFailed

LOAD = make_load(num_prompts=3, max_tokens=4, num_clients=2, deadline_s=20.0, seed=1)
Respond = Callable[[web.Request, web.StreamResponse, str], Awaitable[None]]


async def send(response: web.StreamResponse, value: object) -> None:
    data = value if isinstance(value, str) else json.dumps(value)
    await response.write(f"data: {data}\n\n".encode())


async def right(request: web.Request, response: web.StreamResponse, prompt: str) -> None:
    """Answer with the first words of the prompt, so that each prompt has an answer of its own."""
    for word in prompt.split()[:4]:
        await send(response, {"choices": [{"text": word + " "}]})
    await send(response, "[DONE]")


class Site:
    """A server whose manner of answering can be changed while it runs."""

    def __init__(self) -> None:
        self.respond: Respond = right
        app = web.Application()
        app.router.add_post("/v1/completions", self._serve)
        self.server = TestServer(app)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        prompt = (await request.json())["prompt"]
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await self.respond(request, response, prompt)
        return response

    def traffic(self, deadline_s: float = LOAD.deadline_s) -> Traffic:
        load = make_load(num_prompts=3, max_tokens=4, num_clients=2, deadline_s=deadline_s, seed=1)
        return Traffic(Front(str(self.server.make_url("")).rstrip("/")), "m", load)


async def first_answer(traffic: Traffic) -> Answer:
    traffic.start()
    await asyncio.sleep(0)  # both clients send; `stop` waits for what is under way
    await traffic.stop()
    return traffic.answers[0]


def one_after(respond: Respond, *, deadline_s: float = 20.0) -> Answer:
    """Learn the right answers, then have one request answered by `respond`."""

    async def body() -> Answer:
        site = Site()
        await site.server.start_server()
        traffic = site.traffic(deadline_s)
        try:
            await traffic.learn()
            site.respond = respond
            return await first_answer(traffic)
        finally:
            await traffic.close()
            await site.server.close()

    return asyncio.run(asyncio.wait_for(body(), 60))


def test_the_same_answer_to_its_end_is_right() -> None:
    answer = one_after(right)
    assert (answer.verdict, answer.detail) == (Verdict.RIGHT, "")
    assert answer.first_s is not None


def test_a_token_that_comes_twice_is_wrong() -> None:
    async def twice(request: web.Request, response: web.StreamResponse, prompt: str) -> None:
        await send(response, {"choices": [{"text": prompt.split()[0] + " "}]})
        await right(request, response, prompt)

    answer = one_after(twice)
    assert answer.verdict is Verdict.WRONG
    assert "differs from character" in answer.detail


def test_an_answer_that_just_stops_is_wrong() -> None:
    async def stops(request: web.Request, response: web.StreamResponse, prompt: str) -> None:
        await send(response, {"choices": [{"text": prompt.split()[0] + " "}]})

    answer = one_after(stops)
    assert (answer.verdict, answer.detail) == (
        Verdict.WRONG,
        "the stream ended without [DONE] and without an error",
    )


def test_an_error_event_is_an_error_even_with_done_behind_it() -> None:
    async def fails(request: web.Request, response: web.StreamResponse, prompt: str) -> None:
        await send(response, {"error": {"message": "the worker died"}})
        await send(response, "[DONE]")

    answer = one_after(fails)
    assert answer.verdict is Verdict.ERROR
    assert "the worker died" in answer.detail


def test_a_broken_connection_is_cut() -> None:
    async def breaks(request: web.Request, response: web.StreamResponse, prompt: str) -> None:
        assert request.transport is not None
        request.transport.abort()

    assert one_after(breaks).verdict is Verdict.CUT


def test_no_end_within_the_deadline_is_hung() -> None:
    async def waits(request: web.Request, response: web.StreamResponse, prompt: str) -> None:
        await asyncio.Event().wait()

    assert one_after(waits, deadline_s=2.0).verdict is Verdict.HUNG


@pytest.mark.parametrize(
    ("headers", "verdict"), [({"retry-after": "1"}, Verdict.REFUSED), ({}, Verdict.ERROR)], ids=["with a time", "bare"]
)
def test_a_refusal_names_a_time_to_come_back(headers: dict[str, str], verdict: Verdict) -> None:
    async def body() -> Answer:
        app = web.Application()

        async def refuse(request: web.Request) -> web.Response:
            return web.json_response({"error": {"message": "full"}}, status=503, headers=headers)

        app.router.add_post("/v1/completions", refuse)
        server = TestServer(app)
        await server.start_server()
        traffic = Traffic(Front(str(server.make_url("")).rstrip("/")), "m", LOAD)
        try:
            return await first_answer(traffic)
        finally:
            await traffic.close()
            await server.close()

    assert asyncio.run(asyncio.wait_for(body(), 60)).verdict is verdict


def test_nothing_is_learnt_from_a_cluster_that_fails_before_any_fault() -> None:
    async def body() -> None:
        site = Site()

        async def fails(request: web.Request, response: web.StreamResponse, prompt: str) -> None:
            await send(response, {"error": {"message": "no model"}})

        site.respond = fails
        await site.server.start_server()
        traffic = site.traffic()
        try:
            with pytest.raises(StartFailed, match=r"before any fault.*no model"):
                await traffic.learn()
        finally:
            await traffic.close()
            await site.server.close()

    asyncio.run(asyncio.wait_for(body(), 60))


def test_clients_that_leave_are_counted_as_such_or_as_what_they_got() -> None:
    async def body() -> list[Answer]:
        site = Site()

        async def waits(request: web.Request, response: web.StreamResponse, prompt: str) -> None:
            await asyncio.Event().wait()

        await site.server.start_server()
        traffic = site.traffic()
        try:
            site.respond = waits
            return await traffic.leave_early(8)
        finally:
            await traffic.close()
            await site.server.close()

    answers = asyncio.run(asyncio.wait_for(body(), 60))
    assert count(answers, Verdict.LEFT) == 8
