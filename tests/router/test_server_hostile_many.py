"""Hostile clients in numbers, against a router in a process of its own: what it holds goes back to what it was.

Memory is compared after a first round of the same, for what is made once stays: code, caches, arenas.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.hostile_client import PROMPT, connected, head, post
from tests.support.router_process import RouterProcess, router_process
from tests.support.router_site import Site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MIB = 1 << 20
WAIT_S = 60.0


@pytest.fixture
async def process(pair: Site, tmp_path: Path) -> AsyncIterator[RouterProcess]:
    async with router_process(pair, tmp_path, max_concurrent_requests=2000, explained_requests=64) as process:
        yield process
    assert process.errors() == []


async def serve_honestly(process: RouterProcess) -> float:
    """Send one request that must be served; give the time it took."""
    begin_s = time.monotonic()
    reply = await process.client.post("/v1/completions", json=PROMPT)
    assert reply.status_code == 200, reply.text
    return time.monotonic() - begin_s


async def leave(url: str, rng: random.Random, seen: list[bytes]) -> None:
    """Send part of a request, or all of it and read part of the answer, and be gone."""
    request = post(json.dumps(PROMPT | {"max_tokens": 30, "stream": rng.random() < 0.7}).encode())
    async with connected(url) as (reader, writer), asyncio.timeout(WAIT_S):
        if rng.random() < 0.4:
            writer.write(request[: rng.randrange(len(request))])
            await writer.drain()
            return
        writer.write(request)
        left, first = rng.randrange(6000), b""
        while left > 0 and (data := await reader.read(left)):
            first = first or data[:12]
            left -= len(data)
        if first:
            seen.append(first)


async def test_a_thousand_disconnects_leave_nothing(pair: Site, process: RouterProcess) -> None:
    rng, seen = random.Random(2), list[bytes]()

    async def round_of(number: int) -> None:
        for _ in range(number // 50):
            await asyncio.gather(*(leave(process.url, rng, seen) for _ in range(50)))

    await serve_honestly(process)
    descriptors = process.num_descriptors
    await round_of(300)
    await process.until_idle(descriptors)
    before = process.memory_bytes
    await round_of(1000)
    await process.until_idle(descriptors)
    await pair.until_idle()
    assert process.memory_bytes - before < 4 * MIB
    assert await process.inflight() == 0
    await serve_honestly(process)
    assert len(seen) > 300
    assert {line for line in seen if len(line) == 12} == {b"HTTP/1.1 200"}


async def test_half_heads_and_half_bodies_are_cheap_and_others_are_served(process: RouterProcess) -> None:
    await serve_honestly(process)
    descriptors, memory = process.num_descriptors, process.memory_bytes
    number = 400
    async with AsyncExitStack() as open_connections:
        for index in range(number):
            _, writer = await open_connections.enter_async_context(connected(process.url))
            writer.write(head(100_000)[:-2] if index % 2 else head(100_000) + b'{"prompt": "')
        times_s = sorted([await serve_honestly(process) for _ in range(40)])
        assert process.num_descriptors <= descriptors + number
        assert process.memory_bytes - memory < number * 64 * 1024
        assert times_s[len(times_s) // 2] < 1.0
    await process.until_idle(descriptors)


async def test_clients_that_do_not_read_cost_bounded_memory_and_slow_nobody(process: RouterProcess) -> None:
    await serve_honestly(process)
    descriptors, memory = process.num_descriptors, process.memory_bytes
    body = json.dumps(PROMPT | {"max_tokens": 8000, "stream": True}).encode()
    host, _, port = process.url.removeprefix("http://").rpartition(":")
    number = 10
    silent = []
    try:
        for _ in range(number):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            connection.sendall(post(body))
            silent.append(connection)
        for _ in range(200):
            await serve_honestly(process)
            assert process.memory_bytes - memory < number * 2 * MIB
        assert await process.inflight() == number
    finally:
        for connection in silent:
            connection.close()
    await process.until_idle(descriptors)


async def test_bodies_beyond_the_limit_are_not_held_in_memory(pair: Site, tmp_path: Path) -> None:
    async with router_process(pair, tmp_path, max_body_bytes=1 << 20) as process:
        await serve_honestly(process)
        descriptors, memory = process.num_descriptors, process.memory_bytes

        async def flood() -> bytes:
            async with connected(process.url) as (reader, writer), asyncio.timeout(WAIT_S):
                writer.write(head(32 * MIB))
                for _ in range(32):
                    writer.write(b"a" * MIB)
                    await writer.drain()
                return await reader.readline()

        answers = await asyncio.gather(*(flood() for _ in range(8)))
        assert {answer.split()[1] for answer in answers} == {b"413"}
        assert process.memory_bytes - memory < 24 * MIB
        await process.until_idle(descriptors)
        await serve_honestly(process)


async def test_more_connections_than_descriptors_shut_nobody_out(process: RouterProcess) -> None:
    await serve_honestly(process)
    most = process.num_descriptors + 100
    resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, (most, most))
    async with AsyncExitStack() as open_connections:
        for _ in range(200):
            _, writer = await open_connections.enter_async_context(connected(process.url))
            writer.write(head(10)[:-2])
        async with httpx.AsyncClient(base_url=process.url, timeout=5) as newcomer:
            assert (await newcomer.get("/live")).status_code == 200
