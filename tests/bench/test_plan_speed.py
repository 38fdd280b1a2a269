"""Longer workloads keep rate and kind; time is that of the action."""

from __future__ import annotations

import numpy as np
import pytest

from bench.plan_speed import at_length, timed
from sim.workload import Workload

RNG = np.random.default_rng(1)
WORKLOAD = Workload("w", np.cumsum(RNG.exponential(0.5, 400)), RNG.integers(1, 100, 400), RNG.integers(1, 100, 400))


def test_a_longer_workload_keeps_its_rate_and_lengths() -> None:
    longer = at_length(WORKLOAD, 3_000)
    assert len(longer) >= 3_000
    assert longer.arrived_s[0] == 0.0
    assert np.all(np.diff(longer.arrived_s) >= 0)
    assert longer.rate == pytest.approx(WORKLOAD.rate, rel=0.1)
    assert set(longer.prompt_tokens) <= set(WORKLOAD.prompt_tokens)


def test_a_workload_that_is_long_enough_stays_as_it_is() -> None:
    assert at_length(WORKLOAD, 400) is WORKLOAD


def test_the_action_runs_once() -> None:
    ran: list[int] = []
    assert timed(lambda: ran.append(1)) >= 0.0
    assert ran == [1]
