"""The metric names are an interface: their form is checked here."""

from __future__ import annotations

import re

import pytest

from core.metrics import METRICS, Kind, Metric, edges_with_targets


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_names_follow_prometheus(metric: Metric) -> None:
    assert re.fullmatch(r"baton_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") or metric.kind is not Kind.COUNTER
    assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets_s)
    assert metric.help.endswith(".")
    assert list(metric.buckets_s) == sorted(set(metric.buckets_s))


def test_names_are_unique() -> None:
    assert len({m.name for m in METRICS}) == len(METRICS)


def test_targets_become_edges() -> None:
    metric = Metric("baton_x_seconds", Kind.HISTOGRAM, "X.", (), (0.1, 1.0))
    assert edges_with_targets(metric, (0.4, 1.0)) == (0.1, 0.4, 1.0)
