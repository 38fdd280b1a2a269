"""Ctrl-C while load runs: what had ended counts, what ran is left out, and the handler is put back."""

from __future__ import annotations

import asyncio
import signal

import pytest

from bench.serving.datasets import DatasetSpec
from bench.serving.endpoint import endpoint
from bench.serving.load_run import LoadRun
from bench.serving.load_shape import LoadShape
from bench.serving.result import BenchResult
from bench.serving.session import BenchSpec, opened
from tests.support.http_mocks import Heard, mock_server, stream_tokens

ENDED = 5  # answered before the rest hang


def interrupting(after: int):  # type: ignore[no-untyped-def]
    """Make a server that answers `after` streams and then has the client interrupted, as Ctrl-C does."""
    asked = 0

    async def respond(heard: Heard, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += bool(heard.body.get("stream"))
        if asked > after:  # a second time too, if what was cut off were sent again
            signal.raise_signal(signal.SIGINT)
            await asyncio.Event().wait()
        await stream_tokens(heard, writer)

    return respond


async def interrupted(after: int, *, clients: int = 1) -> BenchResult:
    spec = BenchSpec(DatasetSpec(num_requests=40, input_tokens=8, output_tokens=3), LoadShape(max_concurrency=clients))
    async with mock_server(interrupting(after)) as mock, opened(endpoint(mock.url)) as session:
        return await session.run(spec)


async def test_what_had_ended_is_the_result() -> None:
    before = signal.getsignal(signal.SIGINT)
    async with asyncio.timeout(30):
        found = await interrupted(ENDED)
    assert found.is_interrupted
    assert (found.metrics.completed, found.metrics.failed, len(found.run.timings)) == (ENDED, 0, ENDED)
    assert any(f"of 40 requests, the {ENDED} that had ended" in note for note in found.notes)
    assert signal.getsignal(signal.SIGINT) is before


async def test_more_signals_change_nothing() -> None:
    async with asyncio.timeout(30):
        found = await interrupted(ENDED, clients=4)  # each of the four that hang sends one
    assert found.is_interrupted
    assert 0 < found.metrics.completed <= ENDED


def test_with_nothing_ended_there_is_no_result() -> None:
    with pytest.raises(KeyboardInterrupt), asyncio.Runner() as runner:
        runner.run(asyncio.wait_for(interrupted(0), 30))


async def test_between_two_requests_it_ends_at_once() -> None:
    spec = BenchSpec(DatasetSpec(num_requests=2, input_tokens=8, output_tokens=3), LoadShape(rate=0.001))
    async with asyncio.timeout(30), mock_server() as mock, opened(endpoint(mock.url)) as session:
        requests, _, _ = await session.requests(spec)
        load = LoadRun(session.pool, requests, spec.shape, spec.options)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(0)
        load.interrupt()
        load.interrupt()
        assert (await running).timings == []
