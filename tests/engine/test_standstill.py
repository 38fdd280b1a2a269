"""What counts as a standstill.

Invariants: an engine without requests never stands still; anything that is seen of the core begins the count anew;
the count grows by one with each look that shows nothing; a standstill is over only when something is seen.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.standstill import Sight, Standstill, Verdict

STILL = Sight(num_steps=7, num_answers=1, cpu_ticks=50, is_runnable=False, has_work=True)
MOVES = [{"num_steps": 8}, {"num_answers": 2}, {"cpu_ticks": 51}, {"is_runnable": True}]


def after(*sights: Sight) -> Verdict:
    rule, verdict = Standstill(), Verdict()
    for sight in sights:
        verdict = rule.look(sight)
    return verdict


def test_a_core_of_which_nothing_is_seen_stands_still() -> None:
    assert after(*[STILL] * 5) == Verdict(num_still=4, num_stepless=4)


def test_an_idle_core_does_not() -> None:
    assert after(*[replace(STILL, has_work=False)] * 5) == Verdict()


@pytest.mark.parametrize("seen", MOVES, ids=str)
def test_one_of_which_anything_is_seen_does_not(seen: dict[str, int]) -> None:
    verdict = after(*[STILL] * 5, replace(STILL, **seen))
    assert verdict.num_still == 0
    assert verdict.num_stepless == (0 if "num_steps" in seen else 5)


def test_it_stands_still_after_its_requests_were_given_up_on() -> None:
    idle = replace(STILL, has_work=False)
    assert after(STILL, STILL, idle, idle).num_still == 3
    assert after(STILL, STILL, idle, replace(idle, num_answers=2)) == Verdict()


sights = st.builds(
    Sight,
    num_steps=st.integers(0, 1),
    num_answers=st.integers(0, 1),
    cpu_ticks=st.integers(0, 1),
    is_runnable=st.booleans(),
    has_work=st.booleans(),
)


@given(st.lists(sights, min_size=2, max_size=40))
def test_the_counts_follow_what_is_seen(looks: list[Sight]) -> None:
    rule, before = Standstill(), Verdict()
    rule.look(looks[0])
    for last, sight in pairwise(looks):
        verdict = rule.look(sight)
        moves = sight.is_runnable or replace(last, is_runnable=False, has_work=sight.has_work) != replace(
            sight, is_runnable=False
        )
        expected = 0 if moves or not (sight.has_work or before.num_still) else before.num_still + 1
        assert verdict.num_still == expected
        assert verdict.num_stepless >= verdict.num_still
        assert verdict.num_stepless in (0, before.num_stepless + 1)
        before = verdict
