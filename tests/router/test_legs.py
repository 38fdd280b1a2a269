"""Workers and clients that go away, at every point of a request's life."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from core.engine import HttpCall, ReplySink
from core.errors import EngineFailed
from tests.support.collector import Collector
from tests.support.router_site import MODEL, NEVER, WAIT_S, Site

PROMPT = "the sea was calm"
SLOW = ("--step-ms", "20")
LONG = {"model": MODEL, "prompt": PROMPT, "max_tokens": 4000, "stream": True}
UNRESUMED = LONG | {"n": 2}
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SSE = (("content-type", "text/event-stream"),)


def waiting(site: Site, worker_id: str) -> bool:
    return site.workers[worker_id].role.state().num_waiting > 0


async def post(client: httpx.AsyncClient, **fields: object) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 4} | fields))


# -- the prefill side ------------------------------------------------------------------------------------------------


async def test_failed_prefill_is_called_off_and_the_client_sees_nothing(site: Site, client: httpx.AsyncClient) -> None:
    prefill = await site.add_worker("prefill-0")
    decode = await site.add_worker("decode-0", *NEVER)
    prefill.engine.fail("broken on purpose")
    reply = await client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 4})
    assert reply.status_code == 200
    assert reply.json()["usage"]["completion_tokens"] == 4
    (reason,) = decode.engine.cancelled.values()
    assert "broken on purpose" in reason
    assert await site.metric("baton_handover_total", outcome="engine_failed") == 1


async def test_refused_prefill_is_called_off(site: Site, client: httpx.AsyncClient) -> None:
    async def refuse(call: HttpCall, sink: ReplySink) -> None:
        sink.start(503, (("content-type", "application/json"),))
        sink.body(b"{}")

    (await site.add_worker("prefill-0")).engine.script = refuse
    decode = await site.add_worker("decode-0", *NEVER)
    assert (await client.post("/v1/completions", json={"prompt": PROMPT})).status_code == 200
    assert list(decode.engine.cancelled.values()) == ["the prefill leg was answered 503"]
    assert await site.metric("baton_handover_total", outcome="refused") == 1


async def test_prefill_worker_lost_is_called_off(site: Site, client: httpx.AsyncClient) -> None:
    prefill = await site.add_worker("prefill-0", "--prefill-tokens-per-s", "0.1")
    decode = await site.add_worker("decode-0", *NEVER)
    request = await post(client)
    await site.until(lambda: waiting(site, "decode-0") and prefill.role.state().num_running == 1)
    await prefill.kill()
    assert (await request).status_code == 200
    assert len(decode.engine.cancelled) == 1
    assert await site.metric("baton_retries_total") == 0
    assert (await client.post("/v1/completions", json={"prompt": PROMPT})).status_code == 200
    assert await site.metric("baton_requests_total", leg="whole") == 1


async def test_refused_decode_ends_the_prefill_leg(site: Site, client: httpx.AsyncClient) -> None:
    prefill = await site.add_worker("prefill-0", "--prefill-tokens-per-s", "0.1")
    decode = await site.add_worker("decode-0")
    running = asyncio.Event()

    async def refuse(call: HttpCall, sink: ReplySink) -> None:
        await running.wait()
        sink.start(400, (("content-type", "application/json"),))
        sink.body(b'{"error":{"message":"no"}}')

    decode.engine.script = refuse
    request = await post(client)
    await site.until(lambda: prefill.role.state().num_running == 1)
    running.set()
    assert (await request).status_code == 400
    await site.until_idle()
    assert await site.metric("baton_handover_total", outcome="cancelled") == 1


# -- the decode side -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_decode_lost_before_the_first_byte_is_retried(
    site: Site, client: httpx.AsyncClient, stream: bool
) -> None:
    await site.add_worker("prefill-0")
    first = await site.add_worker("decode-0", *NEVER)
    await site.add_worker("decode-1", *SLOW)
    request = await post(client, stream=stream)
    await site.until(lambda: waiting(site, "decode-0"))
    await first.kill()
    reply = await request
    assert reply.status_code == 200
    assert reply.content.endswith(b"[DONE]\n\n") == stream
    assert await site.metric("baton_retries_total", reason="worker_lost") == 1
    assert await site.metric("baton_requests_total", outcome="ok") == 1


async def test_stream_promised_and_lost_is_continued_by_another_worker(site: Site, client: httpx.AsyncClient) -> None:
    async def promise(call: HttpCall, sink: ReplySink) -> None:
        sink.start(200, SSE)
        promised.set()
        await asyncio.Event().wait()

    promised = asyncio.Event()
    first = await site.add_worker("decode-0")
    first.engine.script = promise
    await site.add_worker("decode-1")
    async with client.stream("POST", "/v1/completions", json=LONG | {"max_tokens": 3}) as reply:
        assert reply.status_code == 200  # the head is out before any token
        await first.kill()
        body = await reply.aread()
    assert promised.is_set()
    assert body.count(b"\n\n") == 4
    assert body.endswith(b"[DONE]\n\n")


async def test_stream_taken_over_by_a_refusal_ends_with_an_error(site: Site, client: httpx.AsyncClient) -> None:
    async def promise(call: HttpCall, sink: ReplySink) -> None:
        sink.start(200, SSE)
        await asyncio.Event().wait()

    async def refuse(call: HttpCall, sink: ReplySink) -> None:
        sink.start(500, (("content-type", "application/json"),))
        sink.body(b"{}")

    first, second = await site.add_worker("decode-0"), await site.add_worker("decode-1")
    first.engine.script, second.engine.script = promise, refuse
    async with client.stream("POST", "/v1/completions", json=LONG) as reply:
        await first.kill()
        site.announced.set(second.record)  # it is not to be waited for
        body = await reply.aread()
    assert json.loads(body.removeprefix(b"data: "))["error"]["type"] == "engine_failed"


async def test_decode_lost_in_mid_stream_is_told_in_the_stream(pair: Site, client: httpx.AsyncClient) -> None:
    decode = await pair.add_worker("decode-1", *SLOW)
    await pair.workers["decode-0"].kill()
    await pair.until(lambda: "decode-0" not in pair.connected())
    events: list[str] = []
    async with client.stream("POST", "/v1/completions", json=UNRESUMED) as reply:
        async for line in reply.aiter_lines():  # raises if the chunked body is not ended properly
            events += [line] if line else []
            if len(events) == 3:
                await decode.kill()
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("worker_lost", 502)
    assert "decode-1" in error["message"]
    assert await pair.metric("baton_requests_total", outcome="worker_lost") == 1
    assert await pair.metric("baton_slo_missed_total") == 1


async def test_official_client_raises_on_a_broken_stream(pair: Site, official: openai.AsyncOpenAI) -> None:
    decode = pair.workers["decode-0"]
    stream = await official.completions.create(model=MODEL, prompt=PROMPT, max_tokens=4000, n=2, stream=True)
    await anext(aiter(stream))
    await decode.kill()
    with pytest.raises(openai.APIError, match="decode-0"):
        _ = [event async for event in stream]


async def test_engine_that_fails_is_retried_elsewhere(pair: Site, client: httpx.AsyncClient) -> None:
    pair.workers["decode-0"].engine.fail("broken on purpose")
    await pair.add_worker("decode-1")
    assert (await client.post("/v1/completions", json={"prompt": PROMPT})).status_code == 200
    assert await pair.metric("baton_retries_total", reason="engine_failed") == 1


async def test_tries_are_bounded(site: Site, client: httpx.AsyncClient) -> None:
    for i in range(5):
        (await site.add_worker(f"decode-{i}")).engine.fail("broken on purpose")
    reply = await client.post("/v1/completions", json={"prompt": PROMPT})
    assert reply.status_code == 500
    assert reply.json()["error"]["type"] == "engine_failed"
    assert await site.metric("baton_retries_total") == 2


async def test_no_decode_worker_lets_prefill_serve_whole(site: Site, client: httpx.AsyncClient) -> None:
    prefill = await site.add_worker("prefill-0")
    reply = await client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 4})
    assert reply.json()["usage"]["completion_tokens"] == 4
    assert "kv_transfer_params" not in json.loads(prefill.engine.calls[0].body)


async def test_unlike_workers_are_not_paired(site: Site, client: httpx.AsyncClient) -> None:
    prefill = await site.add_worker("prefill-0", block_size=64)
    await site.add_worker("decode-0")
    assert (await client.post("/v1/completions", json={"prompt": PROMPT})).status_code == 200
    assert not prefill.engine.calls


async def test_nothing_to_serve_with(site: Site, client: httpx.AsyncClient) -> None:
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models")):
        reply = await client.request(method, path, json={"prompt": PROMPT})
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert reply.json()["error"]["type"] == "no_worker"
    assert await site.metric("baton_requests_total", leg="none", outcome="no_worker") == 1


async def test_draining_worker_is_passed_over(pair: Site, client: httpx.AsyncClient) -> None:
    await pair.add_worker("decode-1")
    pair.workers["decode-0"].role.drain()
    replies = [await client.post("/v1/completions", json={"prompt": PROMPT}) for _ in range(3)]
    assert [r.status_code for r in replies] == [200] * 3
    assert not pair.workers["decode-0"].engine.calls


async def test_errors_of_a_worker_in_its_stream_are_relayed(pair: Site, client: httpx.AsyncClient) -> None:
    async def fail(call: HttpCall, sink: ReplySink) -> None:
        sink.start(200, SSE)
        sink.body(b'data: {"error": {"message": "mine"}}\n\n')
        sink.body(b"data: [DONE]\n\n")

    pair.workers["decode-0"].engine.script = fail
    reply = await client.post("/v1/completions", json=LONG)
    assert reply.content == b'data: {"error": {"message": "mine"}}\n\ndata: [DONE]\n\n'


async def test_engine_failing_in_mid_stream_is_told_in_the_stream(pair: Site, client: httpx.AsyncClient) -> None:
    async def fail(call: HttpCall, sink: ReplySink) -> None:
        sink.start(200, SSE)
        sink.body(b"data: {}\n\n")
        raise EngineFailed("out of luck")

    pair.workers["decode-0"].engine.script = fail
    events = (await client.post("/v1/completions", json=UNRESUMED)).content.split(b"\n\n")
    assert events[0] == b"data: {}"
    assert json.loads(events[1].removeprefix(b"data: "))["error"]["message"] == "out of luck"
    assert events[2:] == [b""]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("content_type", "body", "told"),
    [
        (
            "application/json",
            b'{"detail":"There was an error parsing the body"}',
            "There was an error parsing the body",
        ),
        ("application/json", b'{"detail":[{"loc":["body"]}]}', '{"detail":[{"loc":["body"]}]}'),
        ("text/plain", b"Not quite", "Not quite"),
        ("application/json", b"[]", "[]"),
        ("application/json", b"", "Unprocessable Entity"),
    ],
)
async def test_refusals_in_another_shape_leave_in_ours(
    pair: Site, client: httpx.AsyncClient, content_type: str, body: bytes, told: str, stream: bool
) -> None:
    async def refuse(call: HttpCall, sink: ReplySink) -> None:
        sink.start(422, (("content-type", content_type),))
        sink.body(body)

    pair.workers["decode-0"].engine.script = refuse
    reply = await client.post("/v1/completions", json=LONG | {"stream": stream})
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {
        "error": {"message": told, "type": "invalid_request_error", "param": None, "code": 422},
    }


async def test_refusals_in_our_shape_leave_as_they_are(pair: Site, client: httpx.AsyncClient) -> None:
    body = b'{"type": "error",  "error": {"type": "not_found_error", "message": "as Anthropic has it"}}'

    async def refuse(call: HttpCall, sink: ReplySink) -> None:
        sink.start(404, (("content-type", "application/json"),))
        sink.body(body)

    pair.workers["decode-0"].engine.script = refuse
    assert (await client.post("/v1/completions", json=LONG)).content == body


# -- the client ------------------------------------------------------------------------------------------------------


async def test_client_that_leaves_a_stream_ends_both_legs(site: Site, client: httpx.AsyncClient) -> None:
    await site.add_worker("prefill-0", "--prefill-tokens-per-s", "0.1")
    await site.add_worker("decode-0", "--step-ms", "20")
    async with client.stream("POST", "/v1/completions", json=LONG | {"prompt": [1]}) as reply:
        async for _ in reply.aiter_lines():
            break
    await site.until_idle()
    assert await site.metric("baton_requests_total", outcome="client_gone") == 1
    assert await site.metric("baton_slo_missed_total") == 0


async def test_client_that_leaves_before_any_answer_ends_both_legs(site: Site, client: httpx.AsyncClient) -> None:
    prefill = await site.add_worker("prefill-0", "--prefill-tokens-per-s", "0.1")
    decode = await site.add_worker("decode-0", *NEVER)
    request = await post(client)
    await site.until(lambda: waiting(site, "decode-0") and prefill.role.state().num_running == 1)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await site.until_idle()
    assert decode.engine.cancelled  # KV that is already on its way finds nobody
    assert await site.metric("baton_handover_total", outcome="cancelled") == 1


# -- traces ----------------------------------------------------------------------------------------------------------


async def test_each_leg_has_a_span_that_its_worker_hangs_its_own_below() -> None:
    collector, site = Collector(), Site()
    try:
        await site.start_router(otlp_endpoint=collector.url)
        workers = [await site.add_worker(worker_id) for worker_id in ("prefill-0", "decode-0")]
        async with httpx.AsyncClient(base_url=site.url, timeout=WAIT_S) as client:
            reply = await client.post(
                "/v1/completions", json={"prompt": PROMPT, "max_tokens": 4}, headers={"traceparent": CALLER}
            )
        assert reply.status_code == 200
        await site.until_idle()
        given = [dict(worker.engine.calls[-1].headers)["traceparent"].split("-") for worker in workers]
    finally:
        await site.stop()  # it sends what waits
        collector.close()
    root, *parts = collector.spans()
    legs = {span["spanId"]: span for span in parts if span["name"].startswith("leg.")}
    prefill, decode = (legs[span_id] for _, _, span_id, _ in given)
    assert (prefill["name"], decode["name"], len(legs)) == ("leg.prefill", "leg.decode", 2)
    for span, (_, trace_id, _, flags) in zip((prefill, decode), given, strict=True):
        assert (trace_id, flags) == (CALLER.split("-")[1], "01")
        assert (span["traceId"], span["parentSpanId"], span["kind"]) == (trace_id, root["spanId"], 3)
        begin, end = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
        assert int(root["startTimeUnixNano"]) <= begin < end <= int(root["endTimeUnixNano"])


async def test_without_a_collector_every_leg_carries_what_the_client_sent(
    site: Site, client: httpx.AsyncClient
) -> None:
    workers = [await site.add_worker(worker_id) for worker_id in ("prefill-0", "decode-0")]
    body = {"prompt": PROMPT, "max_tokens": 4}
    assert (await client.post("/v1/completions", json=body, headers={"traceparent": CALLER})).status_code == 200
    await site.until_idle()
    assert [dict(worker.engine.calls[-1].headers)["traceparent"] for worker in workers] == [CALLER, CALLER]
