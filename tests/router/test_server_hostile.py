"""Clients that mean harm, or are broken: each gets an error that is no 500, or is cut off, and leaves nothing behind.

One test for each class of attack: bodies and headers that are not what they should be, heads and bodies that never
end, clients that leave at any point. Each ends with an honest request that is served, and with no request of the
others. test_server_hostile_many.py does the same in numbers.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import http_protocol
from tests.support.hostile_client import PROMPT, connected, converse, head, post
from tests.support.router_site import Site
from tests.support.site_thread import SiteThread

WAIT_S = 20.0
FIELDS = (
    *("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n", "best_of"),
    *("priority", "echo", "prompt_logprobs", "logprobs", "use_beam_search", "kv_transfer_params", "vllm_xargs", "stop"),
)
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize", "/detokenize")
BODIES = {
    "empty": b"",
    "no JSON": b"{",
    "deep list": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "long number": b'{"prompt": "a", "max_tokens": ' + b"9" * 100_000 + b"}",
    "large number": b'{"prompt": "a", "max_tokens": 18446744073709551615}',
    "huge exponent": b'{"prompt": "a", "temperature": 1e999999}',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "infinite": b'{"prompt": "a", "priority": -Infinity}',
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "overlong UTF-8": b'{"prompt": "\xc0\xaf"}',
    "half a surrogate": b'{"prompt": "\\ud800"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"prompt": "a"}',
    "null byte": b'{"prompt": "a\\u0000b"}',
    "twice": b'{"prompt": "a", "prompt": {}, "kv_transfer_params": {"a": 1}, "kv_transfer_params": null}',
    "reserved": b'{"prompt": "a", "kv_transfer_params": {"do_remote_prefill": true}}',
    "a number": b"1",
    "a list": b"[1]",
    "null": b"null",
    "negative tokens": b'{"prompt": [-1, -2], "max_tokens": 1}',
    "huge tokens": b'{"prompt": [99999999999999999999], "max_tokens": 1}',
    "no prompt": b'{"prompt": []}',
    "mixed prompt": b'{"prompt": [1, "a", null, []]}',
}
HEADERS = {
    "length twice": b"content-length: 1\r\n",
    "length and chunks": b"transfer-encoding: chunked\r\n",
    "null byte": b"x-slo-class: a\x00b\r\n",
    "folded": b"x-slo-class: a\r\n b\r\n",
    "no name": b": a\r\n",
    "space before colon": b"x-slo-class : a\r\n",
    "high bytes": b"x-request-id: \xff\xfe\r\n",
    "high bytes in a class": b"x-slo-class: \xff\xfe\r\n",
    "high bytes in a target": b"x-slo-ttft-ms: \xb2\r\n",
    "high bytes in a key": b"authorization: Bearer \xff\xfe\r\n",
    "high bytes in what is forwarded": b"traceparent: \xff\xfe\r\naccept: \xf0\r\n",
    "a hundred": b"x-a: b\r\n" * 100,
    "same name often": b"x-request-id: a\r\n" * 50,
    "expect": b"expect: 100-continue\r\n",
    "upgrade": b"upgrade: websocket\r\n",
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
header_values = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40)
header_names = st.sampled_from(
    ["x-request-id", "x-slo-class", "x-slo-ttft-ms", "x-slo-tpot-ms", "authorization", "traceparent", "accept", "range"]
)


async def serves(site: Site) -> bool:
    async with httpx.AsyncClient(base_url=site.url, timeout=WAIT_S) as client:
        return (await client.post("/v1/completions", json=PROMPT)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_strange_body_is_answered(pair: Site, path: str) -> None:
    for name, body in BODIES.items():
        reply = await converse(pair.url, post(body, path=path))
        reply.check()
        assert reply.status in (200, 400), name
    assert await serves(pair)
    await pair.until_idle()


async def test_a_strange_head_is_answered(pair: Site) -> None:
    body = json.dumps(PROMPT).encode()
    for name, lines in HEADERS.items():
        reply = await converse(pair.url, post(body, headers=lines))
        reply.check()
        assert reply.status in (100, 200, 400), name
    assert await serves(pair)
    await pair.until_idle()


@pytest.fixture(scope="module")
def lasting() -> Iterator[SiteThread]:
    """A pair that stays for all the examples of a property."""
    site = SiteThread(max_body_bytes=1 << 20)
    yield site
    site.close()


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), json_values, max_size=8), st.sampled_from(PATHS))
def test_bodies_of_wrong_types_are_answered(lasting: SiteThread, fields: dict[str, object], path: str) -> None:
    body = json.dumps(fields).encode("utf-8", "surrogatepass")
    asyncio.run(converse(lasting.site.url, post(body, path=path))).check()


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(PATHS))
def test_bodies_of_any_bytes_are_answered(lasting: SiteThread, body: bytes, path: str) -> None:
    asyncio.run(converse(lasting.site.url, post(body, path=path))).check()


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(header_names, header_values, max_size=5))
def test_headers_of_any_text_are_answered(lasting: SiteThread, headers: dict[str, str]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
    asyncio.run(converse(lasting.site.url, post(json.dumps(PROMPT).encode(), headers=lines))).check()


@settings(max_examples=80, deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_in_the_place_of_a_request_are_answered(lasting: SiteThread, sent: bytes) -> None:
    # The end of a head, so that the answer need not be waited for; and then a length that is no number.
    asyncio.run(converse(lasting.site.url, sent + b"\r\n\r\nGET / HTTP/1.1\r\ncontent-length: x\r\n\r\n")).check()


def test_nothing_is_left_of_them(lasting: SiteThread) -> None:
    assert lasting.run(serves(lasting.site))
    lasting.run(lasting.site.until_idle())


async def test_heads_that_never_end_are_let_go_and_others_are_served(
    pair: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_S", 0.5)
    monkeypatch.setattr(http_protocol, "LINGER_S", 0.1)

    async def dawdle() -> int:
        async with connected(pair.url) as (reader, writer), asyncio.timeout(WAIT_S):
            writer.write(head(10)[:-2])
            return int((await reader.read()).split()[1])

    async with asyncio.TaskGroup() as group:
        slow = [group.create_task(dawdle()) for _ in range(100)]
        honest = [await serves(pair) for _ in range(5)]
    assert all(honest)
    assert {task.result() for task in slow} == {408}
    await _until_no_connection_is_left(pair)


async def test_bodies_that_never_end_hold_their_place_only_for_the_time_of_a_request() -> None:
    site = Site()
    await site.start_router(request_timeout_s=0.5, max_concurrent_requests=60)
    await site.add_worker("decode-0")

    async def dawdle() -> int:
        async with connected(site.url) as (reader, writer), asyncio.timeout(WAIT_S):
            writer.write(head(1000) + b'{"prompt": ')
            return int((await reader.readline()).split()[1])

    async with asyncio.TaskGroup() as group:
        slow = [group.create_task(dawdle()) for _ in range(50)]
        assert await serves(site)
    assert {task.result() for task in slow} == {504}
    assert await serves(site)
    await site.until_idle()
    await site.stop()


async def test_bodies_that_never_end_take_no_place_from_others() -> None:
    site = Site()
    await site.start_router(max_concurrent_requests=20)
    try:
        await site.add_worker("decode-0")
        async with AsyncExitStack() as open_connections:
            for _ in range(20):
                _, writer = await open_connections.enter_async_context(connected(site.url))
                writer.write(head(1000) + b'{"prompt": ')
            await site.until(lambda: len(site.router._http.server_state.connections) == 20)
            assert await serves(site)
        await site.until_idle()
    finally:
        await site.stop()


async def test_requests_beyond_the_limit_are_refused_and_do_not_pile_up() -> None:
    site = Site()
    await site.start_router(max_concurrent_requests=10)
    await site.add_worker("decode-0", "--step-ms", "30")
    body = json.dumps(PROMPT | {"max_tokens": 20}).encode()
    replies = await asyncio.gather(*(converse(site.url, post(body)) for _ in range(60)))
    statuses = [reply.status for reply in replies]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 10
    assert await serves(site)
    await site.until_idle()
    await site.stop()


async def test_clients_that_leave_at_any_point_leave_nothing_behind(pair: Site) -> None:
    assert await serves(pair)
    await _until_no_connection_is_left(pair)
    tasks, descriptors = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
    rng = random.Random(1)
    await asyncio.gather(*(leave(pair.url, rng.random(), rng.random(), streams=rng.random() < 0.7) for _ in range(60)))
    await pair.until_idle()
    await _until_no_connection_is_left(pair)
    assert await serves(pair)
    await _until_no_connection_is_left(pair)
    assert len(asyncio.all_tasks()) == tasks
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert pair.router.dispatcher.num_inflight == 0


async def leave(url: str, share_sent: float, share_read: float, *, streams: bool) -> None:
    """Send part of a request, or all of it and read part of the answer, and be gone."""
    request = post(json.dumps(PROMPT | {"max_tokens": 40, "stream": streams}).encode())
    async with connected(url) as (reader, writer), asyncio.timeout(WAIT_S):
        if share_sent < 0.5:
            writer.write(request[: int(2 * share_sent * len(request))])
            await writer.drain()
            return
        writer.write(request)
        left = int(share_read * 4000)
        while left > 0 and (data := await reader.read(left)):
            left -= len(data)


async def _until_no_connection_is_left(site: Site) -> None:
    await site.until(lambda: not site.router._http.server_state.connections)
