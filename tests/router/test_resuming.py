"""Streams that go on when the worker that makes them is lost, at simulated engines behind real sockets.

Invariant: whatever of a stream was relayed when its worker failed, and however its tokens were grouped, the client gets
the bytes of a stream that nothing happened to.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.engine import HttpCall, ReplySink, Resume
from core.errors import EngineFailed
from core.router_spec import SLOTarget
from core.types import ClusterView, Decision, Rejection, RequestShape, Route
from engine import simulated_openai as simulated
from router.resuming import MAX_RESUMES
from tests.support.router_site import MODEL, Site

PROMPT = "the sea was calm"
SLOW = ("--step-ms", "20")
STREAM = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "stream": True}
IDS = {"x-request-id": "the-one"}
Script = Callable[[HttpCall, ReplySink], Awaitable[None]]


def generation(call: HttpCall) -> simulated.Generation:
    return simulated.parse_generation(call, chat="chat" in call.path, model=MODEL, max_model_len=8192)


def undisturbed(body: dict[str, object], sizes: tuple[int, ...], path: str = "/v1/completions") -> list[bytes]:
    """List the events of a stream whose first tokens are grouped so."""
    call = HttpCall("the-one", "POST", path, (), json.dumps(body).encode())
    asked = generation(call)
    events, index = [], 0
    for size in (*sizes, *(1 for _ in range(asked.max_tokens - sum(sizes)))):
        events.append(simulated.event(asked, index, [asked.token(index + i) for i in range(size)]))
        index += size
    return [*events, simulated.closing_events(asked)]


def breaking_off(sizes: tuple[int, ...], num_bytes: int, *, told_ahead: int = 0) -> Script:
    """Script a worker that relays so many bytes of a stream, tells their tokens, and fails."""

    async def script(call: HttpCall, sink: ReplySink) -> None:
        asked = generation(call)
        sink.start(200, simulated.SSE_HEADERS)
        events = undisturbed(json.loads(call.body), sizes, call.path)
        index = sent = 0
        for place, size in enumerate(sizes):
            if sent < num_bytes or told_ahead > 0:
                told_ahead_now = sent >= num_bytes
                sink.tokens([asked.token(index + i) for i in range(size)])
                index += size
                if told_ahead_now:
                    break
                data = events[place][: num_bytes - sent]
                sink.body(data)
                sent += len(data)
        raise EngineFailed("broken on purpose")

    return script


async def read(client: httpx.AsyncClient, body: dict[str, object], path: str = "/v1/completions") -> bytes:
    reply = await client.post(path, json=body, headers=IDS)
    assert reply.status_code == 200
    return reply.content


async def read_and_break(
    client: httpx.AsyncClient, body: dict[str, object], num_events: int, break_it: Callable[[], Awaitable[object]]
) -> bytes:
    """Read a stream, and break something after so many of its events."""
    data = b""
    async with client.stream("POST", "/v1/completions", json=body, headers=IDS) as reply:
        async for part in reply.aiter_raw():
            before, data = data, data + part
            if before.count(b"\n\n") < num_events <= data.count(b"\n\n"):
                await break_it()
    return data


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple),
    cut=st.integers(1, 2000),
    chat=st.booleans(),
    usage=st.booleans(),
    told_ahead=st.integers(0, 1),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_cut_and_grouping_gives_the_bytes_of_an_undisturbed_stream(
    sizes: tuple[int, ...], cut: int, chat: bool, usage: bool, told_ahead: int
) -> None:
    async def run() -> None:
        site = Site()
        await site.start_router(slo_classes=(SLOTarget("interactive", 20.0, 5.0),))
        try:
            broken = await site.add_worker("decode-0")
            await site.add_worker("prefill-0")
            prompt = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
            body = {"model": MODEL, "max_tokens": 24, "stream": True, "return_token_ids": True, **prompt}
            body |= {"stream_options": {"include_usage": True}} if usage else {}
            path = "/v1/chat/completions" if chat else "/v1/completions"
            events = undisturbed(body, sizes, path)
            num_bytes = 1 + cut % len(b"".join(events[: len(sizes)]))
            broken.engine.script = breaking_off(sizes, num_bytes, told_ahead=told_ahead)
            async with httpx.AsyncClient(base_url=site.url, timeout=20) as client:
                data = await read(client, body, path)
            # Groups that were not told are made anew, each token by itself.
            assert _joined(data) == _joined(b"".join(events))
            assert data.startswith(b"".join(events)[:num_bytes])
            assert await site.metric("baton_streams_resumed_total", outcome="ok") == 1
        finally:
            await site.stop()

    asyncio.run(run())


def _joined(data: bytes) -> tuple[str, list[int], list[object], bool]:
    """Join a stream's text and tokens; how they are grouped into events may differ after a cut."""
    text, ids, rest = "", [], []
    *events, done, end = data.split(b"\n\n")
    assert end == b""
    for line in events:
        body = json.loads(line.removeprefix(b"data: "))
        for choice in body["choices"]:
            text += choice.get("text") or choice.get("delta", {}).get("content", "")
            ids += choice["token_ids"]
            rest.append(choice["finish_reason"]) if choice["finish_reason"] else None
        rest += [body["usage"]] if "usage" in body else []
    return text, ids, rest, done == b"data: [DONE]"


async def test_decode_lost_in_mid_stream_goes_on_as_a_pair(pair: Site, client: httpx.AsyncClient) -> None:
    lost = pair.workers["decode-0"]
    lost.engine.script = breaking_off((1, 1, 1), 500)
    other = await pair.add_worker("decode-1")
    lost_first = [await read(client, STREAM | {"prompt": f"{PROMPT} {i}"}) for i in range(4)]
    assert all(data.endswith(b"[DONE]\n\n") for data in lost_first)
    assert lost.engine.calls
    orders = [call.resume for call in other.engine.calls if call.resume is not None]
    assert len(orders) == len(lost.engine.calls)
    assert all(isinstance(order, Resume) and len(order.token_ids) == 3 for order in orders)
    assert all("kv_transfer_params" in json.loads(call.body) for call in other.engine.calls)
    prefills = [call for call in pair.workers["prefill-0"].engine.calls if call.resume is not None]
    assert len(prefills) == len(orders)


async def test_decode_killed_in_mid_stream_goes_on_at_prefill(site: Site, client: httpx.AsyncClient) -> None:
    await site.add_worker("prefill-0")
    decode = await site.add_worker("decode-0", *SLOW)
    data = await read_and_break(client, STREAM, 3, decode.kill)
    assert data == b"".join(undisturbed(STREAM, ()))
    told = (await client.get("/v1/requests/the-one/explain")).json()
    (resumed,) = told["resumes"]
    assert resumed["decode"] == "prefill-0"
    assert resumed["gap_ms"] >= 0
    assert told["timeline"]["total_ms"] <= told["actual"]["e2e_ms"]
    assert await site.metric("baton_requests_total", outcome="ok") == 1


async def test_one_worker_that_comes_back_goes_on_itself(site: Site, client: httpx.AsyncClient) -> None:
    """A session that is lost, and not its worker: it is given the stream again once it is connected anew."""
    worker = await site.add_worker("decode-0", *SLOW)

    async def cut() -> None:
        worker.cut_sessions()

    data = await read_and_break(client, STREAM, 3, cut)
    assert data == b"".join(undisturbed(STREAM, ()))
    assert await site.metric("baton_streams_resumed_total", outcome="ok") == 1


async def test_a_second_loss_is_made_up_for_too(site: Site, client: httpx.AsyncClient) -> None:
    workers = [await site.add_worker(f"decode-{i}", *SLOW) for i in range(3)]
    seen = 0
    data = b""
    async with client.stream("POST", "/v1/completions", json=STREAM, headers=IDS) as reply:
        async for part in reply.aiter_raw():
            data += part
            if data.count(b"\n\n") >= 4 * (seen + 1) and seen < 2:
                seen += 1
                (busy,) = [w for w in workers if w.role.state().num_running]
                workers.remove(busy)
                await busy.kill()
    assert data == b"".join(undisturbed(STREAM, ()))
    assert await site.metric("baton_streams_resumed_total", outcome="ok") == 2


async def test_resumes_of_one_stream_are_bounded(site: Site, client: httpx.AsyncClient) -> None:
    for i in range(MAX_RESUMES + 3):
        (await site.add_worker(f"decode-{i}")).engine.script = breaking_off((1, 1), 300)
    data = await read(client, STREAM)
    *_, cut, told, end = data.split(b"\n\n")
    assert not cut.endswith(b"}")  # the error is an event of its own all the same
    assert (json.loads(told.removeprefix(b"data: "))["error"]["type"], end) == ("engine_failed", b"")
    assert sum(len(w.engine.calls) for w in site.workers.values()) == 1 + MAX_RESUMES


async def test_what_differs_ends_with_a_clear_error(site: Site, client: httpx.AsyncClient) -> None:
    async def other_words(call: HttpCall, sink: ReplySink) -> None:
        sink.start(200, simulated.SSE_HEADERS)
        sink.body(b'data: {"choices": [{"text": " nothing of the kind", "index": 0}]}\n\n' * 20)

    (await site.add_worker("decode-0")).engine.script = breaking_off((1, 1), 300)
    (await site.add_worker("prefill-0")).engine.script = other_words
    data = await read(client, STREAM)
    assert b"nothing of the kind" not in data
    error = json.loads(data.split(b"data: ")[-1])["error"]
    assert error["type"] == "resume_failed"
    assert await site.metric("baton_streams_resumed_total", outcome="resume_failed") == 1


async def test_what_the_engine_cannot_resume_ends_with_a_clear_error(site: Site, client: httpx.AsyncClient) -> None:
    (await site.add_worker("decode-0")).engine.script = breaking_off((1, 1), 300)
    await site.add_worker("prefill-0")
    data = await read(client, STREAM | {"seed": 3})
    error = json.loads(data.split(b"data: ")[-1])["error"]
    assert (error["type"], "seed" in error["message"]) == ("resume_failed", True)


@pytest.mark.parametrize("fields", [{"n": 2}, {"prompt_logprobs": 1}], ids=str)
async def test_what_cannot_be_resumed_ends_with_the_loss(
    site: Site, client: httpx.AsyncClient, fields: dict[str, object]
) -> None:
    (await site.add_worker("decode-0")).engine.script = breaking_off((1, 1), 300)
    prefill = await site.add_worker("prefill-0")
    data = await read(client, STREAM | fields)
    assert json.loads(data.split(b"data: ")[-1])["error"]["type"] == "engine_failed"
    assert not prefill.engine.calls


async def test_the_end_that_was_relayed_is_the_end(site: Site, client: httpx.AsyncClient) -> None:
    async def fail_late(call: HttpCall, sink: ReplySink) -> None:
        sink.start(200, simulated.SSE_HEADERS)
        for event in undisturbed(STREAM, ()):
            sink.body(event)
        raise EngineFailed("after the end")

    (await site.add_worker("decode-0")).engine.script = fail_late
    assert await read(client, STREAM) == b"".join(undisturbed(STREAM, ()))


async def test_tokens_made_for_a_stream_that_left_are_not_made_again(site: Site, client: httpx.AsyncClient) -> None:
    await site.add_worker("prefill-0")
    decode = await site.add_worker("decode-0", *SLOW)
    async with client.stream("POST", "/v1/completions", json=STREAM | {"max_tokens": 4000}) as reply:
        await anext(reply.aiter_raw())
    await decode.kill()
    await site.until_idle()
    assert not any(call.resume for call in site.workers["prefill-0"].engine.calls)


# -- nobody there ----------------------------------------------------------------------------------------------------


class OnceOnly:
    """Takes each request once, and refuses it ever after: what it has waited has broken its promise."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        if request.request_id in self._taken:
            return Rejection("slo_infeasible", "its first token cannot come in time any more")
        self._taken.add(request.request_id)
        return Route("decode-0", None, "the first")


@pytest.mark.parametrize("has_head", [False, True], ids=["before its head", "before its first token"])
async def test_what_was_taken_is_not_refused_when_its_worker_is_lost(
    site: Site, client: httpx.AsyncClient, has_head: bool
) -> None:
    async def lost(call: HttpCall, sink: ReplySink) -> None:
        if has_head:
            sink.start(200, simulated.SSE_HEADERS)
        raise EngineFailed("broken on purpose")

    site.router._policy._policy = OnceOnly()
    await site.add_worker("decode-0", script=lost)
    await site.add_worker("decode-1")
    assert await read(client, STREAM) == b"".join(undisturbed(STREAM, ()))


async def test_requests_wait_for_a_worker_to_come_back(site: Site, client: httpx.AsyncClient) -> None:
    worker = await site.add_worker("decode-0")
    worker.cut_sessions()
    await site.until(lambda: not site.connected())
    waiting = [asyncio.create_task(read(client, STREAM)) for _ in range(3)]
    assert await asyncio.gather(*waiting) == [b"".join(undisturbed(STREAM, ()))] * 3
    assert await site.metric("baton_requests_total", outcome="ok") == 3


async def test_the_wait_for_a_worker_is_bounded(client_of: Callable[..., Awaitable[httpx.AsyncClient]]) -> None:
    client = await client_of(worker_wait_s=0.2)
    began_s = asyncio.get_running_loop().time()
    reply = await client.post("/v1/completions", json=STREAM)
    assert reply.status_code == 503
    assert reply.json()["error"]["type"] == "no_worker"
    assert asyncio.get_running_loop().time() - began_s >= 0.2


async def test_no_request_waits_beyond_its_own_deadline(
    client_of: Callable[..., Awaitable[httpx.AsyncClient]],
) -> None:
    client = await client_of(worker_wait_s=60.0, request_timeout_s=0.2)
    reply = await client.post("/v1/completions", json=STREAM)
    assert reply.status_code == 504


async def test_without_any_announced_worker_nobody_waits(site: Site, client: httpx.AsyncClient) -> None:
    began_s = asyncio.get_running_loop().time()
    assert (await client.post("/v1/completions", json=STREAM)).status_code == 503
    assert asyncio.get_running_loop().time() - began_s < 5.0


@pytest.fixture
async def client_of() -> AsyncIterator[Callable[..., Awaitable[httpx.AsyncClient]]]:
    """Make a client of a router whose only worker died and is still announced."""
    site, clients = Site(), []

    async def make(**settings: object) -> httpx.AsyncClient:
        await site.start_router(**settings)
        worker = await site.add_worker("decode-0")
        await worker.kill()
        await site.until(lambda: not site.connected())
        clients.append(httpx.AsyncClient(base_url=site.url, timeout=20))
        return clients[0]

    yield make
    for client in clients:
        await client.aclose()
    await site.stop()
