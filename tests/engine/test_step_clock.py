"""A step's time is its share of the wall clock, and its content is what the scheduler gave the model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.step import Step
from engine.step_clock import StepClock, TracedStep, step_of

DECODE = Step(decode_seqs=2, context_tokens=100)
NOTHING = Step()


class Traced:
    """A clock, and the steps it told."""

    def __init__(self, *, overlapping: bool = False) -> None:
        self.clock = StepClock(overlapping=overlapping)
        self.steps: list[TracedStep] = []

    def computed(self, key: int, now_s: float, *, work_left: bool) -> None:
        if (step := self.clock.computed(key, now_s, work_left=work_left)) is not None:
            self.steps.append(step)


def test_pieces_add_up_to_prompts_and_decoding() -> None:
    pieces = [(100, 0), (50, 200), (1, 300), (1, 7)]
    pairs = 100 * 50 + 50 * (200 + 25)
    assert step_of(iter(pieces)) == Step(150, 2, pairs, 2, 301 + 8)


def test_a_prompt_of_one_token_is_no_decoding() -> None:
    assert step_of(iter([(1, 0)])) == Step(1, 1, 0.5)


def test_the_last_token_of_a_prompt_computed_elsewhere_is_decoding() -> None:
    assert step_of(iter([(1, 63)])) == Step(decode_seqs=1, context_tokens=64)


def test_a_busy_engine_counts_from_the_end_of_the_step_before() -> None:
    traced = Traced()
    traced.clock.scheduled(1, DECODE, 10.0)
    traced.computed(1, 10.5, work_left=True)
    traced.clock.scheduled(2, DECODE, 10.6)
    traced.computed(2, 11.0, work_left=False)
    traced.clock.scheduled(3, DECODE, 20.0)
    traced.computed(3, 20.25, work_left=False)
    assert [(each.began_s, each.ended_s) for each in traced.steps] == [(10.0, 10.5), (10.5, 11.0), (20.0, 20.25)]


def test_waiting_for_kv_is_no_step_and_no_part_of_one() -> None:
    traced = Traced()
    traced.clock.scheduled(1, DECODE, 1.0)
    traced.computed(1, 2.0, work_left=True)
    traced.clock.scheduled(2, NOTHING, 2.0)
    traced.computed(2, 2.001, work_left=True)
    traced.clock.scheduled(3, DECODE, 5.0)
    traced.computed(3, 6.0, work_left=False)
    assert [each.seconds for each in traced.steps] == [1.0, 1.0]


def test_a_step_scheduled_ahead_begins_when_the_one_before_ends() -> None:
    traced = Traced()
    traced.clock.scheduled(1, DECODE, 1.0)
    traced.clock.scheduled(2, DECODE, 1.1)
    traced.computed(1, 2.0, work_left=True)
    traced.clock.scheduled(3, NOTHING, 2.1)
    traced.computed(2, 3.0, work_left=False)
    assert [(each.began_s, each.ended_s) for each in traced.steps] == [(1.0, 2.0), (2.0, 3.0)]


def test_with_pipeline_stages_each_step_counts_from_its_own_scheduling() -> None:
    traced = Traced(overlapping=True)
    traced.clock.scheduled(1, DECODE, 1.0)
    traced.clock.scheduled(2, DECODE, 1.1)
    traced.computed(1, 2.0, work_left=True)
    traced.computed(2, 2.5, work_left=False)
    assert [(each.began_s, each.ended_s) for each in traced.steps] == [(1.0, 2.0), (1.1, 2.5)]


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=30))
def test_the_steps_of_a_busy_engine_add_up_to_the_wall_clock(gaps_and_lengths_ms: list[tuple[int, int]]) -> None:
    traced = Traced()
    now_s = began_s = 5.0
    for key, (gap_ms, length_ms) in enumerate(gaps_and_lengths_ms):
        traced.clock.scheduled(key, DECODE, now_s + (gap_ms / 1e3 if key else 0.0))
        now_s += (gap_ms + length_ms) / 1e3
        traced.computed(key, now_s, work_left=True)
    assert sum(each.seconds for each in traced.steps) == pytest.approx(now_s - began_s)
