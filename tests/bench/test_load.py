"""The client of scripts: each request is awaited, refusals are told, pages are read."""

from __future__ import annotations

import asyncio
import math

from bench.load import Prompts, open_loop, open_session, quantile, stream_completion
from tests.support.http_mocks import Heard, document, mock_server


async def test_completions_in_an_open_loop() -> None:
    prompts = Prompts(1)
    async with mock_server() as mock, open_session() as session:
        timings = await open_loop(
            [0.0, 0.01, 0.02],
            lambda index: stream_completion(session, mock.url, prompts.make(9), model="m", max_tokens=index + 1),
        )
        assert await session.text(mock.url, "/v1/models")
        bodies = [h.body for h in mock.generations()]
    assert [len(t.tokens_s) for t in timings] == [1, 2, 3]
    assert not any(t.error for t in timings)
    assert {len(body["prompt"]) for body in bodies} == {9}


async def test_refusals_and_clients_that_leave() -> None:
    async def refuse(heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(document({"error": {"earliest_feasible_ms": 5}}, 429, x_baton_reservation="r"))

    async with mock_server(refuse) as mock, open_session() as session:
        found = await stream_completion(session, mock.url, [1], model="m", max_tokens=2, reservation="before")
        assert mock.heard[0].headers["x-baton-reservation"] == "before"
    assert (found.is_refused, found.earliest_ms, found.reservation) == (True, 5, "r")
    async with mock_server() as mock, open_session() as session:
        left = await stream_completion(session, mock.url, [1], model="m", max_tokens=50, leave_after=3)
    assert (left.is_cancelled, left.error) == (True, "")


def test_quantiles() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert math.isnan(quantile([], 0.5))
