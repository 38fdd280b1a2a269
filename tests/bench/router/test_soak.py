"""Growth is that of the second half: what fills up at the start is not a leak."""

from __future__ import annotations

import pytest

from bench.router.site import Cores
from bench.router.soak import Sample, Soak, growth_mb, soak_report


def samples(rss_mb: list[float]) -> list[Sample]:
    return [Sample(15.0 * n, 100_000 * n, 0, mb, 80.0, 5.0) for n, mb in enumerate(rss_mb, start=1)]


def test_a_plateau_is_flat_and_a_leak_is_not() -> None:
    assert growth_mb(samples([70, 90, 110, 120, 120, 120, 120, 120])) == pytest.approx(0.0)
    assert growth_mb(samples([70, 71, 72, 73, 74, 75, 76, 77])) == pytest.approx(10.0)


def test_the_report_says_what_the_churn_is_worth() -> None:
    plan = Soak(Cores(), 120.0, 32, 4000, "slo-aware")
    text = "\n".join(soak_report(plan, samples([70.0] * 8)))
    assert "800,000 requests in 120 s, in bytes of prompts as much as 8,000,000 requests of 400; 0 errors." in text
    assert "Growth in the second half: +0.00 MiB a million requests" in text
