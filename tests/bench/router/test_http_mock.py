"""The mock engines answer what routers ask, and stream a token a step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from bench.router.http_mock import HttpMock, rendered
from bench.router.stepping import Batch, Timing
from core.types import Role

Start = Callable[[Role, Timing], Awaitable[str]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    servers: list[asyncio.Server] = []
    batches: list[Batch] = []

    async def one(role: Role, timing: Timing) -> str:
        batch = Batch(timing)
        server = await asyncio.get_running_loop().create_server(lambda: HttpMock(role, timing, batch), "127.0.0.1", 0)
        servers.append(server)
        batches.append(batch)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield one
    for server in servers:
        server.close()
    for batch in batches:
        batch.close()


def asked(**fields: object) -> dict[str, object]:
    return {"model": "mock", "prompt": "0000000100020003 hello", "max_tokens": 3, **fields}


async def test_a_document_and_what_routers_ask_first(start: Start) -> None:
    url = await start(Role.DECODE, Timing())
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        answer = (await client.post("/v1/completions", json=asked())).json()
        assert answer["usage"]["completion_tokens"] == 3
        assert "kv_transfer_params" not in answer
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "mock"
        assert (await client.get("/get_server_info")).json()["is_generation"]


async def test_prefill_hands_over_and_makes_one_token(start: Start) -> None:
    url = await start(Role.PREFILL, Timing(itl_us=1000))
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        answer = (await client.post("/v1/completions", json=asked())).json()
        assert answer["kv_transfer_params"]["do_remote_prefill"]
        text = (await client.post("/v1/completions", json=asked(stream=True))).text
        assert text.count('"text":" t=') == 1
        assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("itl_us", [0, 500])
async def test_streams_carry_all_tokens(start: Start, itl_us: int) -> None:
    url = await start(Role.DECODE, Timing(itl_us=itl_us))
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        for _ in range(2):
            text = (await client.post("/v1/completions", json=asked(stream=True, max_tokens=5))).text
            assert text.count('"text":" t=') == 5
            assert text.count('"finish_reason":"length"') == 1


async def test_a_chunked_body_is_understood(start: Start) -> None:
    url = await start(Role.DECODE, Timing())

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"model":"mock","prompt":"x",'
        yield b'"max_tokens":9}'

    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        answer = (await client.post("/v1/completions", content=pieces())).json()
        assert answer["usage"]["completion_tokens"] == 9


def token_ids(prompt: str) -> list[int]:
    body = rendered(json.dumps({"model": "mock", "prompt": prompt}).encode()).partition(b"\r\n\r\n")[2]
    ids = json.loads(body)[0]["token_ids"]
    assert isinstance(ids, list)
    return ids


def test_prompts_that_differ_have_token_ids_that_differ_from_the_start() -> None:
    filler = " the quick brown fox" * 20
    one, other = token_ids("0000000000010002" + filler), token_ids("0000000000010003" + filler)
    assert one[:4] == [0, 0, 1, 2]
    assert one[:4] != other[:4]
    assert one[4:] == other[4:]
    assert len(one) == 4 + len(filler) // 4
