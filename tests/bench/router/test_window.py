"""Windows keep what they were made of, and account for cores."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core_wait import CoreTimes
from bench.router.window import Spread, Window


def window(**changes: object) -> Window:
    values: dict[str, object] = {
        "seconds": 2.0,
        "requests": 100,
        "tokens": 400,
        "errors": 0,
        "first_error": "",
        "latency": Spread(1.0, 2.0, 3.0),
        "ttft": Spread(),
        "relay": Spread(),
        "gap": Spread(),
        "times": {"router": CoreTimes(1.0, 0.0), "client": CoreTimes(0.5, 0.1), "mock": CoreTimes(0.25, 0.0)},
        "busy_cores": 1.0,
    }
    return Window(**{**values, **changes})


def test_quantiles_are_milliseconds_of_any_order() -> None:
    values = [1_000_000 * n for n in range(100)]
    random.Random(3).shuffle(values)
    assert Spread.of_ns(values) == Spread(50.0, 99.0, 99.0)
    assert Spread.of_ns([]) == Spread(0.0, 0.0, 0.0)


@given(st.lists(st.integers(0, 10**12), min_size=1))
def test_quantiles_are_ordered_and_seen(values: list[int]) -> None:
    spread = Spread.of_ns(values)
    assert spread.p50 <= spread.p99 <= spread.max == max(values) / 1e6
    assert spread.p50 in {value / 1e6 for value in values}


def test_a_window_survives_its_travel() -> None:
    sent = window(first_error='HTTP/1.1 500\r\n"why"')
    assert Window.from_json(sent.to_json()) == sent
    assert "\n" not in sent.to_json()


def test_cores_are_those_of_processes_and_of_others() -> None:
    seen = window()
    assert seen.cores("router") == 0.5
    assert seen.cores("nobody") == 0.0
    assert seen.other_cores == pytest.approx(1.0 - 0.5 - 0.25 - 0.125)
    assert window(busy_cores=0.1).other_cores == 0.0


def test_rates_are_by_second() -> None:
    assert (window().requests_per_s, window().tokens_per_s) == (50.0, 200.0)
