"""Both sides get every part of the trace, each first as often, and asked the same at the same times."""

from __future__ import annotations

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
from tests.support.http_mocks import Mock, served_in_thread


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
        ((first, second), _) = run_in_turns(targets, [spec, at_rate(spec, 500, seconds=0.01, seed=9)], 3)
        asked = prompts(one), prompts(other)
    assert sorted(len(p.split()) for p in asked[0]) == sorted(len(p.split()) for p in asked[1])
    assert not set(asked[0]) & set(asked[1])
    assert len(asked[0]) == 3 * (10 + 2) + 3 * (5 + 2)
    assert (len(first.run.timings), first.metrics.completed) == (30, 30)
    assert [t.prompt_tokens for t in first.run.timings] == [t.prompt_tokens for t in second.run.timings]


def test_too_few_requests_for_the_parts() -> None:
    with served_in_thread() as mock:
        target = Target("a", endpoint(mock.url))
        spec = BenchSpec(dataset=DatasetSpec(num_requests=0, input_tokens=8), num_warmups=1)
        with pytest.raises(ConfigError, match=r"too few|has 1 requests"):
            run_in_turns((target, target), [spec], 3)
