"""Counters and histograms agree with a plain recount of what they were fed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.series import Counter, Histogram, RecentShare, StageHistograms

EDGES = (0.1, 0.5, 1.0)


@given(st.lists(st.floats(0, 2) | st.sampled_from(EDGES)))
def test_histogram_counts_each_value_once(values: list[float]) -> None:
    histogram = Histogram(EDGES)
    for value in values:
        histogram.observe(value)
    expected = [(repr(edge), sum(v <= edge for v in values)) for edge in EDGES] + [("+Inf", len(values))]
    assert list(histogram.cumulative()) == expected
    assert histogram.sum == sum(values)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"))))
def test_counter_counts_by_labels(events: list[tuple[str, str]]) -> None:
    counter = Counter()
    for labels in events:
        counter.add(*labels)
    assert counter.values == {labels: events.count(labels) for labels in set(events)}


@given(st.lists(st.tuples(st.integers(0, 400), st.booleans())).map(sorted), st.integers(0, 100), st.integers(1, 60))
def test_recent_share_forgets_what_is_older_than_its_window(
    events: list[tuple[int, bool]], later: int, window_s: int
) -> None:
    share = RecentShare(60)
    for second, good in events:
        share.add(second + 0.5, good)
    now_s = float((events[-1][0] if events else 0) + later)
    recent = [good for second, good in events if second >= now_s - window_s]
    assert share.counts(now_s, window_s) == (sum(recent), len(recent))


@given(st.lists(st.tuples(st.integers(0, 2_000_000), st.just(0) | st.integers(0, 2_000_000))))
def test_stages_are_counted_as_single_histograms_are(lengths_us: list[tuple[int, int]]) -> None:
    stages, single = StageHistograms(("a", "b"), EDGES), (Histogram(EDGES), Histogram(EDGES))
    for pair in lengths_us:
        stages.observe_us(pair)
        for histogram, length_us in zip(single, pair, strict=True):
            histogram.observe(length_us / 1e6)
    for (stage, sum_s, buckets), name, histogram in zip(stages.cumulative(), "ab", single, strict=True):
        assert stage == name
        assert sum_s == pytest.approx(histogram.sum)
        assert buckets == list(histogram.cumulative())
