"""Arrival times: the rate holds exactly, the burstiness as asked, a dataset's own times as they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.serving.load_shape import LoadShape
from core.errors import ConfigError


@given(st.integers(1, 500), st.floats(0.1, 1000), st.floats(0.2, 10), st.integers(0, 5))
def test_times_rise_and_keep_the_rate(count: int, rate: float, burstiness: float, seed: int) -> None:
    times = LoadShape(rate, burstiness).arrivals(count, seed)
    assert len(times) == count
    assert (np.diff(times) >= 0).all()
    assert times[-1] == pytest.approx(count / rate)
    assert (times == LoadShape(rate, burstiness).arrivals(count, seed)).all()


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_burstiness_is_the_shape_of_the_gaps(burstiness: float) -> None:
    gaps = np.diff(LoadShape(10.0, burstiness).arrivals(20_000, 1))
    assert float(gaps.std() / gaps.mean()) == pytest.approx(burstiness**-0.5, rel=0.08)


def test_a_clock_and_all_at_once() -> None:
    assert LoadShape(2.0, math.inf).arrivals(3, 0).tolist() == [0.5, 1.0, 1.5]
    assert LoadShape().arrivals(3, 0).tolist() == [0.0, 0.0, 0.0]


def test_own_times_are_kept_or_stretched_to_a_rate() -> None:
    own = np.array([5.0, 6.0, 9.0])
    assert LoadShape(keeps_times=True).arrivals(3, 0, own).tolist() == [0.0, 1.0, 4.0]
    assert LoadShape(1.0, keeps_times=True).arrivals(3, 0, own).tolist() == [0.0, 0.5, 2.0]
    assert LoadShape(keeps_times=True, seconds=2.0).arrivals(3, 0, own).tolist() == [0.0, 1.0]


def test_clients_come_one_after_the_other() -> None:
    shape = LoadShape(max_concurrency=4, ramp_up_s=2.0)
    assert [shape.limit_at(t) for t in (0.0, 0.6, 1.9, 2.0, 9.0)] == [1, 2, 4, 4, 4]
    assert not shape.is_open
    assert LoadShape(rate=1).limit_at(0.0) is None


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"rate": math.nan}, {"burstiness": 0}, {"max_concurrency": 0}])
def test_what_offers_no_load_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        LoadShape(**wrong)  # type: ignore[arg-type]
