"""Workloads keep their meaning under scaling, cutting and resampling.

Invariants: times never fall and begin at 0; lengths stay with their request; equal prefix ids stay equal and unlike
ones unlike; ids are without gaps.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.workload import Workload, without_gaps


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    size = draw(st.integers(1, 30))
    gaps = draw(st.lists(st.floats(0, 10), min_size=size, max_size=size))
    lengths = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    ids = draw(st.lists(st.integers(0, 9), min_size=sum(lengths), max_size=sum(lengths)))
    arrived_s = np.cumsum(gaps) - gaps[0]
    return Workload(
        name="drawn",
        arrived_s=arrived_s,
        prompt_tokens=np.arange(1, size + 1) * 10,  # tells requests apart
        output_tokens=np.arange(1, size + 1),
        slo_class=np.arange(size) % 3,
        prefix_start=np.concatenate(([0], np.cumsum(lengths))),
        prefix_ids=without_gaps(np.array(ids, np.int64)),
    )


def prefixes(workload: Workload) -> list[list[int]]:
    start = workload.prefix_start
    return [workload.prefix_ids[start[i] : start[i + 1]].tolist() for i in range(len(workload))]


def shares(a: list[int], b: list[int]) -> list[bool]:
    return [x == y for x, y in zip(a, b, strict=False)]


@given(workloads(), st.floats(0.01, 100))
def test_a_new_rate_only_stretches_time(workload: Workload, rate: float) -> None:
    stretched = workload.at_rate(rate)
    assert stretched.prompt_tokens is workload.prompt_tokens
    if np.isfinite(workload.rate) and workload.rate < 1e6:
        assert stretched.rate == pytest.approx(rate)


def test_requests_at_one_instant_have_no_rate_and_stay() -> None:
    one = Workload("one", np.zeros(1), np.ones(1, np.int64), np.ones(1, np.int64))
    assert one.at_rate(3.0).arrived_s.tolist() == [0.0]


@given(workloads(), st.data())
def test_a_part_is_those_requests_from_time_zero(workload: Workload, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(workload)))
    end = data.draw(st.integers(begin, len(workload)))
    part = workload.part(begin, end)
    assert part.prompt_tokens.tolist() == workload.prompt_tokens[begin:end].tolist()
    assert part.slo_class.tolist() == workload.slo_class[begin:end].tolist()
    assert np.allclose(np.diff(part.arrived_s), np.diff(workload.arrived_s[begin:end]))
    assert part.arrived_s[:1].tolist() == [0.0] * (end > begin)
    assert [len(p) for p in prefixes(part)] == [len(p) for p in prefixes(workload)[begin:end]]


@given(workloads(), st.integers(1, 400))
def test_only_requests_that_fit_are_kept(workload: Workload, limit: int) -> None:
    fitting = workload.fitting(limit)
    total = (workload.prompt_tokens + workload.output_tokens).tolist()
    assert (fitting.prompt_tokens + fitting.output_tokens).tolist() == [t for t in total if t <= limit]


@given(workloads(), st.integers(0, 5), st.integers(1, 40))
def test_a_bootstrap_draws_runs_of_neighbours(workload: Workload, seed: int, block: int) -> None:
    drawn = workload.bootstrap(np.random.default_rng(seed), block)
    size, run = len(workload), min(block, len(workload))
    assert len(drawn) == size
    assert drawn.arrived_s[0] == 0.0
    assert (np.diff(drawn.arrived_s) >= 0).all()
    source = drawn.output_tokens - 1  # the request that each was drawn from
    assert (drawn.prompt_tokens == workload.prompt_tokens[source]).all()
    assert (drawn.slo_class == workload.slo_class[source]).all()
    for i in range(1, size):
        if i % run:
            assert source[i] == (source[i - 1] + 1) % size
            if source[i]:
                gap_s = workload.arrived_s[source[i]] - workload.arrived_s[source[i - 1]]
                assert drawn.arrived_s[i] - drawn.arrived_s[i - 1] == pytest.approx(gap_s, abs=1e-9)


@given(workloads(), st.integers(0, 5), st.integers(1, 40))
def test_a_request_drawn_twice_shares_nothing_with_itself(workload: Workload, seed: int, block: int) -> None:
    drawn = workload.bootstrap(np.random.default_rng(seed), block)
    before, after = prefixes(workload), prefixes(drawn)
    source = (drawn.output_tokens - 1).tolist()
    copy = [source[:i].count(s) for i, s in enumerate(source)]
    ids = sorted({i for prefix in after for i in prefix})
    assert ids == list(range(len(ids)))
    for i in range(len(drawn)):
        for j in range(i):
            if copy[i] != copy[j]:
                assert not set(after[i]) & set(after[j])
            else:
                assert shares(after[i], after[j]) == shares(before[source[i]], before[source[j]])


def test_a_bootstrap_keeps_bursts() -> None:
    rng = np.random.default_rng(0)
    arrived_s = np.cumsum(np.tile([10.0, 0.0], 50))  # two at a time, every 10 s
    pairs = Workload("pairs", arrived_s, np.ones(100, np.int64), np.ones(100, np.int64))
    counts = np.histogram(pairs.bootstrap(rng, 20).arrived_s, np.arange(0, 400, 10.0))[0]
    shuffled = np.cumsum(rng.permutation(np.diff(arrived_s, prepend=0.0)))
    assert counts.var() < np.histogram(shuffled, np.arange(0, 400, 10.0))[0].var()


def test_an_empty_workload_cannot_be_resampled() -> None:
    none = Workload("none", np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="at least one"):
        none.bootstrap(np.random.default_rng(0), 3)


def test_ids_are_renumbered_in_order_of_appearance() -> None:
    assert without_gaps(np.array([7, 3, 7, 9, 3])).tolist() == [0, 1, 0, 2, 1]
