"""The search closes in on the rate at which a promise breaks, from any start."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.serving.goodput_search import Found, Measured, OverSaturation, search
from bench.serving.load_run import Live
from bench.serving.metrics import Targets
from bench.serving.timing import Timing
from sim.plan import Interval


async def find(capacity: float, start: float, **options: float) -> tuple[Found, list[float]]:
    asked: list[float] = []

    async def measure_at(rate: float) -> Measured:
        asked.append(rate)
        return Measured(rate, rate <= capacity, Interval(0, 0.5, 1), min(rate, capacity))

    return await search(measure_at, start, **options), asked  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [0.01, 1.0, 3.0, 500.0])
async def test_both_ends_close_in(start: float) -> None:
    found, asked = await find(7.3, start, most=40)
    assert found.low <= 7.3 < found.high
    assert found.high / found.low <= 1.1
    assert [p.rate for p in found.points] == sorted(asked)


async def test_no_rate_is_too_high_or_low_enough() -> None:
    everything, _ = await find(1e18, 1.0)
    assert (everything.low, everything.high) == (512.0, math.inf)
    nothing, asked = await find(0.0, 8.0)
    assert (nothing.low, nothing.high, len(asked)) == (0.0, 8.0 / 512, 10)


@given(st.integers(0, 100), st.integers(0, 100))
def test_a_run_is_lost_once_too_many_have_missed(missed: int, kept: int) -> None:
    judge = OverSaturation({"": Targets(10, 10, attainment=0.9)}, fewest=5)
    live = Live(200, 0.0)
    live.ended += [Timing(0.0, error="x") for _ in range(missed)]
    assert judge(live) == (missed > 30)
    live.ended += [Timing(0.0, error="x", is_cancelled=True) for _ in range(kept)]
    assert judge(live) == (missed > 30)
