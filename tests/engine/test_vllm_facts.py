"""The facts of a call are those of its only request, and the reader never stands in its way."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from core.types import LegFacts
from engine.vllm_facts import FactsReader
from kv_transfer.receive_times import ReceiveTimes

FACTS = LegFacts(prompt_tokens=100, cached_tokens=32, received_tokens=0, queued_s=pytest.approx(0.5), prefill_s=0.25)


class Processor:
    """vLLM's output processor as the reader knows it."""

    def __init__(self) -> None:
        self.request_states: dict[str, Any] = {}
        self.processed: list[str] = []

    def add_request(self, request: Any, prompt: str | None = None) -> None:
        stats = SimpleNamespace(scheduled_ts=0.0, first_token_ts=0.0)
        self.request_states[request.request_id] = SimpleNamespace(prompt_len=100, stats=stats)

    def process_outputs(self, outputs: list[Any], engine_core_timestamp: float | None = None) -> str:
        for output in outputs:
            self.processed.append(output.request_id)
            if (state := self.request_states.pop(output.request_id, None)) is not None:
                state.stats.scheduled_ts, state.stats.first_token_ts = output.times
        return "processed"


def request(name: str) -> Any:
    return SimpleNamespace(request_id=name)


def token(name: str, given_s: float, *, tokens: tuple[int, ...] = (5,)) -> Any:
    """Make the first output of a request."""
    origin = SimpleNamespace(num_local_cached_tokens=32, num_external_cached_tokens=0)
    times = (given_s + 0.5, given_s + 0.75)
    return SimpleNamespace(
        request_id=name, prefill_stats=origin, new_token_ids=list(tokens), pooling_output=None, times=times
    )


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr("engine.vllm_facts.time", SimpleNamespace(monotonic=lambda: 64.0))
    return 64.0


def test_a_first_token_brings_the_facts(now_s: float) -> None:
    processor = Processor()
    with FactsReader(processor).watch() as call:
        processor.add_request(request("a"), "text")
        assert call.facts is None
        assert processor.process_outputs([token("a", now_s)], 1.0) == "processed"
        assert call.facts == FACTS


async def test_calls_at_once_are_told_apart_though_their_requests_are_made_in_tasks(now_s: float) -> None:
    processor = Processor()
    reader = FactsReader(processor)
    added = asyncio.Barrier(3)

    async def answer(name: str) -> LegFacts | None:
        async def application() -> None:
            processor.add_request(request(name))
            await added.wait()

        with reader.watch() as call:
            await asyncio.create_task(application())
            await answered.wait()
        return call.facts

    answered = asyncio.Event()
    tasks = [asyncio.create_task(answer(name)) for name in ("a", "b")]
    processor.add_request(request("unwatched"))
    await added.wait()
    processor.process_outputs([token("b", now_s), token("unwatched", now_s)])
    answered.set()
    assert await asyncio.gather(*tasks) == [None, FACTS]


def test_a_call_of_several_sequences_has_no_facts(now_s: float) -> None:
    processor = Processor()
    with FactsReader(processor).watch() as call:
        processor.add_request(request("0_a"))
        processor.process_outputs([token("0_a", now_s)])
        processor.add_request(request("1_a"))
        processor.process_outputs([token("1_a", now_s)])
    assert call.facts is None


def test_a_request_that_ends_without_a_token_has_no_facts(now_s: float) -> None:
    processor = Processor()
    with FactsReader(processor).watch() as call:
        processor.add_request(request("a"))
        processor.process_outputs([token("a", now_s, tokens=())])
    assert call.facts is None


def test_a_call_that_ended_is_forgotten(now_s: float) -> None:
    processor = Processor()
    with FactsReader(processor).watch() as call:
        processor.add_request(request("a"))
    processor.process_outputs([token("a", now_s)])
    assert call.facts is None


def test_what_cannot_be_read_hurts_nobody(now_s: float, caplog: pytest.LogCaptureFixture) -> None:
    processor = Processor()
    strange = SimpleNamespace(request_id="a", prefill_stats=object(), new_token_ids=[1], times=(1.0, 2.0))
    with caplog.at_level(logging.ERROR), FactsReader(processor).watch() as call:
        processor.add_request(request("a"))
        assert processor.process_outputs([strange]) == "processed"
    assert call.facts is None
    assert "first tokens are not measured" in caplog.text


def last(name: str, times: tuple[float, float] | None, given_s: float) -> Any:
    """Make the output with which a request ends."""
    receives = ReceiveTimes(iter(times or ()).__next__)
    receives.had_blocks(name) if times else None
    receives.landed([name])
    made = token(name, given_s)
    made.kv_transfer_params = receives.take(name)
    return made


@pytest.mark.parametrize("at_once", [False, True])
def test_the_last_output_brings_the_times_of_the_hand_over_and_clients_see_none(now_s: float, at_once: bool) -> None:
    processor = Processor()
    with FactsReader(processor).watch() as call:
        processor.add_request(request("a"))
        end = last("a", (now_s + 0.125, now_s + 0.375), now_s)
        end.prefill_stats.num_external_cached_tokens = 64
        if not at_once:
            first = token("a", now_s)
            first.prefill_stats.num_external_cached_tokens = 64
            processor.process_outputs([first])
            assert call.facts is not None
            assert call.facts.landed_s == 0.0
        processor.process_outputs([end])
        assert call.facts == FACTS._replace(received_tokens=64, blocks_s=0.125, landed_s=0.375)
        assert end.kv_transfer_params is None


def test_nothing_landed_of_a_hand_over_that_failed(now_s: float) -> None:
    processor = Processor()
    with FactsReader(processor).watch() as call:
        processor.add_request(request("a"))
        end = last("a", (now_s, now_s), now_s)
        processor.process_outputs([end])
        assert call.facts == FACTS
        assert end.kv_transfer_params is None
