"""Both sides get every part of the trace, each first as often, and asked the same at the same times."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.serving.datasets import DatasetSpec
from bench.serving.endpoint import endpoint
from bench.serving.load_shape import LoadShape
from bench.serving.segments import Turn, order, run_in_turns, stays
from bench.serving.session import BenchSpec, at_rate
from bench.serving.target import Target
from core.errors import ConfigError
from tests.support.http_mocks import Heard, Mock, Respond, served_in_thread, stream_tokens


@given(st.integers(1, 9))
def test_turns(segments: int) -> None:
    turns = order(segments)
    assert sorted(turns, key=lambda t: (t.segment, t.side)) == [Turn(s, n) for n in range(segments) for s in (0, 1)]
    groups = list(stays(turns))
    assert [t for group in groups for t in group] == turns
    assert len(groups) == segments + 1  # a system is started so often in all


def prompts(mock: Mock) -> list[str]:
    return [h.body["prompt"] for h in mock.generations() if h.body.get("stream")]


def test_both_sides_are_asked_the_same_lengths_in_other_words() -> None:
    spec = BenchSpec(
        dataset=DatasetSpec(num_requests=10, input_tokens=40, output_tokens=4, range_ratio=0.5),
        shape=LoadShape(rate=1000),
        num_warmups=2,
    )
    with served_in_thread() as one, served_in_thread() as other:
        targets = Target("a", endpoint(one.url)), Target("b", endpoint(other.url))
        both = run_in_turns(targets, [spec, at_rate(spec, 500, seconds=0.01, seed=9)], 3)
        asked = prompts(one), prompts(other)
    assert not both.is_interrupted
    assert both.sides[0] is not None
    first, second = both.sides[0]
    assert sorted(len(p.split()) for p in asked[0]) == sorted(len(p.split()) for p in asked[1])
    assert not set(asked[0]) & set(asked[1])
    assert len(asked[0]) == 3 * (10 + 2) + 3 * (5 + 2)
    assert (len(first.run.timings), first.metrics.completed) == (30, 30)
    assert [t.prompt_tokens for t in first.run.timings] == [t.prompt_tokens for t in second.run.timings]


def interrupting(after: int) -> Respond:
    """Make a server that has the client interrupted at the stream that comes after so many."""
    asked = 0

    async def respond(heard: Heard, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += bool(heard.body.get("stream"))
        if asked > after:
            if asked == after + 1:
                os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        await stream_tokens(heard, writer)

    return respond


def test_an_interrupted_run_gives_the_parts_that_both_sides_have_served() -> None:
    spec = BenchSpec(dataset=DatasetSpec(num_requests=6, input_tokens=8, output_tokens=2), shape=LoadShape(rate=1000))
    # A B B A: the second side is interrupted in its second part, the first has served one by then.
    with served_in_thread() as one, served_in_thread(interrupting(9)) as other:
        targets = Target("a", endpoint(one.url)), Target("b", endpoint(other.url))
        both = run_in_turns(targets, [spec], 2)
    assert both.is_interrupted
    assert both.sides[0] is not None
    assert [len(side.run.timings) for side in both.sides[0]] == [6, 6]


def test_without_a_part_in_common_there_is_nothing_to_compare() -> None:
    spec = BenchSpec(dataset=DatasetSpec(num_requests=6, input_tokens=8, output_tokens=2), shape=LoadShape(rate=1000))
    with served_in_thread() as one, served_in_thread(interrupting(2)) as other:
        targets = Target("a", endpoint(one.url)), Target("b", endpoint(other.url))
        with pytest.raises(KeyboardInterrupt):
            run_in_turns(targets, [spec], 2)


def test_too_few_requests_for_the_parts() -> None:
    with served_in_thread() as mock:
        target = Target("a", endpoint(mock.url))
        spec = BenchSpec(dataset=DatasetSpec(num_requests=0, input_tokens=8), num_warmups=1)
        with pytest.raises(ConfigError, match=r"too few|has 1 requests"):
            run_in_turns((target, target), [spec], 3)
