"""A step's time is its share of the wall clock, and its content is what the scheduler gave the model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.step import Step
from engine.step_trace import StepLog, TracedStep, flags, read_trace, step_of

DECODE = Step(decode_seqs=2, context_tokens=100)
NOTHING = Step()


class Traced:
    """A log, and what it wrote."""

    def __init__(self, tmp_path: Path, *, overlapping: bool = False) -> None:
        self._file = tmp_path / "steps"
        self._out = io.StringIO()
        self.log = StepLog(self._out, overlapping=overlapping)

    @property
    def steps(self) -> list[TracedStep]:
        self._file.write_text(self._out.getvalue())
        return read_trace(self._file)


def test_pieces_add_up_to_prompts_and_decoding() -> None:
    pieces = [(100, 0), (50, 200), (1, 300), (1, 7)]
    pairs = 100 * 50 + 50 * (200 + 25)
    assert step_of(iter(pieces)) == Step(150, 2, pairs, 2, 301 + 8)


def test_a_prompt_of_one_token_is_no_decoding() -> None:
    assert step_of(iter([(1, 0)])) == Step(1, 1, 0.5)


def test_the_last_token_of_a_prompt_computed_elsewhere_is_decoding() -> None:
    assert step_of(iter([(1, 63)])) == Step(decode_seqs=1, context_tokens=64)


def test_a_busy_engine_counts_from_the_end_of_the_step_before(tmp_path: Path) -> None:
    traced = Traced(tmp_path)
    traced.log.scheduled(1, DECODE, 10.0)
    traced.log.computed(1, 10.5, work_left=True)
    traced.log.scheduled(2, DECODE, 10.6)
    traced.log.computed(2, 11.0, work_left=False)
    traced.log.scheduled(3, DECODE, 20.0)
    traced.log.computed(3, 20.25, work_left=False)
    assert [(each.began_s, each.ended_s) for each in traced.steps] == [(10.0, 10.5), (10.5, 11.0), (20.0, 20.25)]


def test_waiting_for_kv_is_no_step_and_no_part_of_one(tmp_path: Path) -> None:
    traced = Traced(tmp_path)
    traced.log.scheduled(1, DECODE, 1.0)
    traced.log.computed(1, 2.0, work_left=True)
    traced.log.scheduled(2, NOTHING, 2.0)
    traced.log.computed(2, 2.001, work_left=True)
    traced.log.scheduled(3, DECODE, 5.0)
    traced.log.computed(3, 6.0, work_left=False)
    assert [each.seconds for each in traced.steps] == [1.0, 1.0]


def test_a_step_scheduled_ahead_begins_when_the_one_before_ends(tmp_path: Path) -> None:
    traced = Traced(tmp_path)
    traced.log.scheduled(1, DECODE, 1.0)
    traced.log.scheduled(2, DECODE, 1.1)
    traced.log.computed(1, 2.0, work_left=True)
    traced.log.scheduled(3, NOTHING, 2.1)
    traced.log.computed(2, 3.0, work_left=False)
    assert [(each.began_s, each.ended_s) for each in traced.steps] == [(1.0, 2.0), (2.0, 3.0)]


def test_with_pipeline_stages_each_step_counts_from_its_own_scheduling(tmp_path: Path) -> None:
    traced = Traced(tmp_path, overlapping=True)
    traced.log.scheduled(1, DECODE, 1.0)
    traced.log.scheduled(2, DECODE, 1.1)
    traced.log.computed(1, 2.0, work_left=True)
    traced.log.computed(2, 2.5, work_left=False)
    assert [(each.began_s, each.ended_s) for each in traced.steps] == [(1.0, 2.0), (1.1, 2.5)]


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=30))
def test_the_steps_of_a_busy_engine_add_up_to_the_wall_clock(gaps_and_lengths_ms: list[tuple[int, int]]) -> None:
    out = io.StringIO()
    log = StepLog(out, overlapping=False)
    now_s = began_s = 5.0
    for key, (gap_ms, length_ms) in enumerate(gaps_and_lengths_ms):
        log.scheduled(key, DECODE, now_s + (gap_ms / 1e3 if key else 0.0))
        now_s += (gap_ms + length_ms) / 1e3
        log.computed(key, now_s, work_left=True)
    total_s = sum(ended - began for began, ended, *_ in map(json.loads, out.getvalue().splitlines()))
    assert total_s == pytest.approx(now_s - began_s, abs=1e-4)


def test_a_line_still_being_written_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "steps"
    assert read_trace(file) == []
    file.write_text("[1.0,2.0,16,1,128.0,0,0]\n[2.0,3.")
    assert read_trace(file) == [TracedStep(1.0, 2.0, Step(16, 1, 128.0))]


def test_the_flags_name_the_file(tmp_path: Path) -> None:
    given_flags = flags(tmp_path / "steps")
    assert str(tmp_path / "steps") in json.loads(given_flags[given_flags.index("--additional-config") + 1]).values()
