"""A request through a healthy cluster, with the client library that most users have."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

from core.engine import HttpCall, ReplySink
from tests.support.router_site import MODEL, Site

PROMPT = "the sea was calm"
BODY = {"prompt": PROMPT}


async def words(stream: openai.AsyncStream[openai.types.Completion]) -> str:
    return "".join([event.choices[0].text async for event in stream])


async def test_stream_through_a_pair(pair: Site, official: openai.AsyncOpenAI) -> None:
    whole = await official.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8)
    stream = await official.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, stream=True)
    assert await words(stream) == whole.choices[0].text
    assert await pair.metric("baton_requests_total", leg="pair", outcome="ok") == 2
    assert await pair.metric("baton_handover_total", outcome="ok") == 2
    assert len(pair.workers["prefill-0"].engine.calls) == 2
    await pair.until_idle()


async def test_both_legs_name_one_transfer_that_cannot_be_guessed(pair: Site, client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await client.post("/v1/completions", json={"prompt": PROMPT})
    sent, received = (
        [json.loads(call.body)["kv_transfer_params"] for call in pair.workers[w].engine.calls]
        for w in ("prefill-0", "decode-0")
    )
    assert [p["transfer_id"] for p in sent] == [p["transfer_id"] for p in received]
    assert len({p["transfer_id"] for p in sent}) == 2
    assert all(len(p["transfer_id"]) == 32 for p in sent)
    assert {p["lease_s"] for p in sent + received} == {30.0}


async def test_chat_streams(pair: Site, official: openai.AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    whole = await official.chat.completions.create(model=MODEL, messages=messages, max_tokens=6)  # type: ignore[arg-type]
    stream = await official.chat.completions.create(
        model=MODEL,
        messages=messages,  # type: ignore[arg-type]
        max_tokens=6,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    async for event in stream:
        text += event.choices[0].delta.content or "" if event.choices else ""
        usage = event.usage or usage
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert usage.completion_tokens == 6


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"n": 2}, "n>1"),
        ({"best_of": 3}, "best_of>1"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"echo": True}, "echo"),
        ({"prompt": ["the sea", "was calm"]}, "several prompts"),
    ],
)
async def test_what_handed_over_kv_cannot_serve_runs_whole(
    pair: Site, client: httpx.AsyncClient, fields: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "router.request")
    await client.post("/v1/completions", json={"prompt": PROMPT} | fields)
    assert not pair.workers["prefill-0"].engine.calls
    (call,) = pair.workers["decode-0"].engine.calls
    assert "kv_transfer_params" not in json.loads(call.body)
    await pair.until(lambda: bool(caplog.records))
    line = json.loads(caplog.records[-1].message)
    assert (line["leg"], line["reason"], line["decode"]) == ("whole", reason, "decode-0")


async def test_bytes_of_a_stream_are_untouched(pair: Site, client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 3, "stream": True})
    events = reply.content.split(b"\n\n")
    assert len(events) == 5
    assert all(json.loads(e.removeprefix(b"data: "))["object"] == "text_completion" for e in events[:3])
    assert events[3:] == [b"data: [DONE]", b""]
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["x-accel-buffering"] == "no"
    assert "content-length" not in reply.headers


async def test_request_id_is_taken_and_given_back(pair: Site, client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/completions", json={"prompt": PROMPT}, headers={"x-request-id": "my-id.1"})
    assert reply.headers["x-request-id"] == "my-id.1"
    assert reply.json()["id"] == "cmpl-my-id.1"
    made = [(await client.post("/v1/completions", json={"prompt": PROMPT})).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2


async def test_odd_request_id_is_refused(pair: Site, client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/completions", json={"prompt": PROMPT}, headers={"x-request-id": "a b"})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "x-request-id"
    assert reply.headers["x-request-id"] != "a b"


async def test_client_headers_do_not_reach_the_engine(pair: Site, client: httpx.AsyncClient) -> None:
    headers = {"authorization": "Bearer k", "cookie": "c", "x-data-parallel-rank": "1", "traceparent": "00-1-2-01"}
    await client.post("/v1/completions", json={"prompt": PROMPT}, headers=headers)
    (call,) = pair.workers["decode-0"].engine.calls
    names = {name for name, _ in call.headers}
    assert "traceparent" in names
    assert not names & {"authorization", "cookie", "x-data-parallel-rank", "host"}


@pytest.mark.parametrize("stream", [False, True])
async def test_worker_refusals_are_relayed(pair: Site, official: openai.AsyncOpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await official.completions.create(model=MODEL, prompt=PROMPT, max_tokens=100_000, stream=stream)
    assert caught.value.status_code == 400
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await official.completions.create(model="other", prompt=PROMPT, stream=stream)
    await pair.until_idle()
    assert await pair.metric("baton_requests_total", outcome="client_error") == 2
    assert await pair.metric("baton_slo_missed_total") == 0


async def test_models_come_from_a_worker(pair: Site, official: openai.AsyncOpenAI) -> None:
    assert [m.id async for m in official.models.list()] == [MODEL]


async def test_slo_class_by_header(pair: Site, client: httpx.AsyncClient) -> None:
    good = await client.post("/v1/completions", json={"prompt": PROMPT}, headers={"x-slo-class": "interactive"})
    assert good.status_code == 200
    bad = await client.post("/v1/completions", json={"prompt": PROMPT}, headers={"x-slo-class": "gold"})
    assert bad.status_code == 400
    assert bad.json()["error"] == {
        "message": "no SLO class 'gold'; valid are interactive",
        "type": "invalid_request_error",
        "param": "x-slo-class",
        "code": 400,
    }


async def test_many_at_once_spread_and_end(pair: Site, client: httpx.AsyncClient) -> None:
    await pair.add_worker("decode-1")
    bodies = [{"prompt": [1, 2, i], "max_tokens": 5, "stream": i % 2 == 0} for i in range(40)]
    replies = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
    assert [r.status_code for r in replies] == [200] * 40
    shares = [len(pair.workers[w].engine.calls) for w in ("decode-0", "decode-1")]
    assert sum(shares) == 40
    assert min(shares) >= 15
    await pair.until_idle()
    assert await pair.metric("baton_inflight_requests") == 0


async def test_deadline_is_504_and_frees_both_legs(tight: Site) -> None:
    async with httpx.AsyncClient(base_url=tight.url) as client:
        reply = await client.post("/v1/completions", json=BODY)
        assert reply.status_code == 504
        assert reply.json()["error"]["type"] == "deadline_exceeded"
    await tight.until_idle()
    assert await tight.metric("baton_requests_total", **{"class": "b", "outcome": "timeout"}) == 1
    assert await tight.metric("baton_slo_missed_total", **{"class": "b"}) == 1


async def test_deadline_in_mid_stream_is_an_event(tight: Site) -> None:
    async def stall(call: HttpCall, sink: ReplySink) -> None:
        sink.start(200, (("content-type", "text/event-stream"),))
        sink.body(b"data: {}\n\n")
        await asyncio.Event().wait()

    tight.workers["decode-0"].engine.script = stall
    async with httpx.AsyncClient(base_url=tight.url) as client:
        reply = await client.post("/v1/completions", json=BODY | {"stream": True})
    assert reply.status_code == 200
    events = reply.content.split(b"\n\n")
    assert json.loads(events[1].removeprefix(b"data: "))["error"]["code"] == 504
    await tight.until_idle()


async def test_one_request_too_many_is_told_to_come_back(tight: Site) -> None:
    async with httpx.AsyncClient(base_url=tight.url) as client:
        first = asyncio.create_task(client.post("/v1/completions", json=BODY))
        await tight.until(lambda: tight.router.dispatcher.num_inflight == 1)
        second = await client.post("/v1/completions", json=BODY)
        assert second.status_code == 429
        assert second.headers["retry-after"] == "1"
        assert second.json()["error"]["type"] == "overloaded"
        assert (await first).status_code == 504
        assert (await client.get("/health")).status_code == 200


async def test_bodies_that_do_not_come_take_no_place(tight: Site) -> None:
    host, port = tight.url.removeprefix("http://").split(":")
    connections = [await asyncio.open_connection(host, int(port)) for _ in range(5)]
    for _, writer in connections:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
    await tight.until(lambda: tight.router.dispatcher.num_inflight == 5)
    async with httpx.AsyncClient(base_url=tight.url) as client:
        assert (await client.get("/v1/models")).status_code == 200
    for _, writer in connections:
        writer.close()
    await tight.until_idle()
