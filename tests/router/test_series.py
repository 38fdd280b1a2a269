"""Counters and histograms agree with a plain recount of what they were fed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.series import Counter, Histogram, RecentRate

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


@given(st.lists(st.integers(0, 400)).map(sorted), st.integers(0, 100))
def test_recent_rate_forgets_what_is_older_than_its_window(seconds: list[int], later: int) -> None:
    rate = RecentRate(60)
    for second in seconds:
        rate.add(second + 0.5)
    now_s = float((seconds[-1] if seconds else 0) + later)
    assert rate.per_second(now_s) == sum(s >= now_s - 60 for s in seconds) / 60
