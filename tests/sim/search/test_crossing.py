"""The highest kept step is found whatever the guess and the shape of the margin."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.search.crossing import FLOOR_STEPS, highest_kept


class Margin:
    """Falls from 0.1 to -0.9 around a step; counts what is asked."""

    def __init__(self, crossing: int, softness: float) -> None:
        self.crossing, self.softness = crossing, softness
        self.asked: list[int] = []

    def __call__(self, step: int) -> float:
        self.asked.append(step)
        if not self.softness:
            return 0.1 if step <= self.crossing else -0.9
        return 1 / (1 + math.exp((step - self.crossing - 0.5) / self.softness)) - 0.5


STEPS, SOFTNESS = st.integers(-300, 300), st.sampled_from((0.0, 1.0, 10.0, 80.0))


@given(STEPS, SOFTNESS, st.integers(-300, 300))
def test_the_step_is_found_from_any_guess(crossing: int, softness: float, wrong_by: int) -> None:
    assert highest_kept(Margin(crossing, softness), crossing + wrong_by, ceiling=10_000) == crossing


@given(STEPS, SOFTNESS, st.integers(-300, 300), st.integers(0, 200))
def test_what_is_known_to_be_beaten_is_a_start(crossing: int, softness: float, wrong_by: int, below: int) -> None:
    margin = Margin(crossing, softness)
    found = highest_kept(margin, crossing + wrong_by, ceiling=10_000, above=crossing - 1 - below)
    assert found == crossing
    assert len(margin.asked) == len(set(margin.asked))


@given(STEPS, SOFTNESS, st.integers(-300, 300), st.integers(2, 8))
def test_a_width_is_how_far_too_low_the_answer_may_be(crossing: int, softness: float, off: int, width: int) -> None:
    found = highest_kept(Margin(crossing, softness), crossing + off, ceiling=10_000, width=width)
    assert found is not None
    assert crossing - width < found <= crossing


@given(STEPS, SOFTNESS, st.integers(0, 50))
def test_the_ceiling_is_never_passed(crossing: int, softness: float, room: int) -> None:
    margin = Margin(crossing, softness)
    assert highest_kept(margin, crossing + 20, ceiling=crossing - room) == crossing - room
    assert max(margin.asked) <= crossing - room


def test_one_try_refutes() -> None:
    margin = Margin(100, 5.0)
    assert highest_kept(margin, 120, ceiling=10_000, above=100) is None
    assert margin.asked == [101]
    assert highest_kept(margin, 120, ceiling=99, above=100) is None


def test_nothing_is_found_where_nothing_is_kept() -> None:
    margin = Margin(-10_000, 0.0)
    assert highest_kept(margin, 100, ceiling=10_000) is None
    assert min(margin.asked) == 100 - FLOOR_STEPS
    assert len(margin.asked) < 10


@pytest.mark.parametrize("softness", [5.0, 20.0])
def test_a_smooth_margin_near_the_guess_takes_few_tries(softness: float) -> None:
    margin = Margin(200, softness)
    assert highest_kept(margin, 204, ceiling=10_000, width=4) in range(197, 201)
    assert len(margin.asked) <= 4
