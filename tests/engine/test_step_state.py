"""The state follows the engine's steps, and tells only of those that matter."""

from __future__ import annotations

from core.types import Quarantined, WorkerState
from engine.step_state import StepFigures, StepReport, StepState


def figures(running: int, waiting: int = 0, usage: float = 0.0, *, tokens: bool = True) -> StepFigures:
    return StepFigures(running, waiting, usage, made_tokens=tokens)


def test_the_state_is_that_of_the_latest_step() -> None:
    steps = StepState()
    steps.set_blocks(511)
    steps.observe(StepFigures(2, 3, kv_usage=1 - 500 / 511, made_tokens=True), 10.0)
    steps.observe(StepFigures(2, 0, kv_usage=1 - 499 / 511, made_tokens=True), 10.25)
    assert steps.get() == WorkerState(2, 0, 12, 511, 0.25)


def test_time_between_busy_spells_is_no_step_time() -> None:
    steps = StepState()
    steps.observe(figures(1), 10.0)
    steps.observe(figures(0), 10.25)
    steps.observe(figures(1), 99.0)
    assert steps.get().step_s == 0.25
    steps.observe(figures(1), 99.5)
    assert steps.get().step_s == 0.5


def test_steps_without_effect_tell_nobody() -> None:
    steps = StepState()
    told: list[WorkerState] = []
    steps.on_step(lambda: told.append(steps.get()))
    for step in range(5):
        steps.observe(figures(0, waiting=1, tokens=False), float(step))
    steps.observe(figures(0, waiting=0, tokens=False), 5.0)
    assert [state.num_waiting for state in told] == [1, 0]


def test_a_step_that_makes_tokens_always_tells() -> None:
    steps = StepState()
    told: list[int] = []
    steps.on_step(lambda: told.append(1))
    steps.observe(figures(1), 1.0)
    steps.observe(figures(1), 2.0)
    steps.observe(figures(1), 3.0)
    assert len(told) == 3


def test_what_a_step_computed_is_as_the_engine_core_says() -> None:
    steps = StepState()
    steps.observe(StepFigures(3, 0, 0.0, made_tokens=True, report=StepReport(0.020, 256, 2)), 10.0)
    assert (steps.get().step_s, steps.get().step_prompt_tokens, steps.get().step_seqs) == (0.020, 256, 2)


def test_a_part_of_a_prompt_makes_no_token_and_tells() -> None:
    steps = StepState()
    told: list[WorkerState] = []
    steps.on_step(lambda: told.append(steps.get()))
    for now_s in (1.0, 2.0):  # equal steps are two steps
        steps.observe(StepFigures(1, 0, 0.0, made_tokens=False, report=StepReport(0.1, 256, 0)), now_s)
    assert told == [WorkerState(num_running=1, step_s=0.1, step_prompt_tokens=256)] * 2


def test_a_step_without_effect_leaves_the_latest_step_as_it_was() -> None:
    steps = StepState()
    steps.observe(StepFigures(1, 1, 0.0, made_tokens=True, report=StepReport(0.1, 8, 1)), 1.0)
    steps.observe(figures(0, waiting=1, tokens=False), 2.0)
    assert steps.get() == WorkerState(num_waiting=1, step_s=0.1, step_prompt_tokens=8, step_seqs=1)


def test_what_an_engine_does_not_report_is_unknown() -> None:
    steps = StepState()
    steps.observe(StepFigures(1, 0, 0.0, made_tokens=True, report=StepReport(0.1, 8, 1)), 1.0)
    steps.observe(figures(1), 1.5)
    assert steps.get() == WorkerState(num_running=1, step_s=0.5)


def test_a_quarantine_outlives_the_next_step_and_is_told_at_once() -> None:
    state, told = StepState(), []
    state.on_step(lambda: told.append(state.get().quarantined))
    left_out = (Quarantined("prefill-0", 3, 1, 60.0, "wrong KV"),)
    state.set_quarantined(left_out)
    state.observe(StepFigures(1, 0, 0.5, made_tokens=True), 1.0)
    assert told == [left_out, left_out]


def test_a_standstill_is_told_once_and_outlasts_steps() -> None:
    steps = StepState()
    told: list[bool] = []
    steps.on_step(lambda: told.append(steps.get().stalled))
    steps.set_stalled(False)
    steps.set_stalled(True)
    steps.set_stalled(True)
    steps.observe(figures(1), 1.0)
    steps.set_stalled(False)
    assert told == [True, True, False]
    assert steps.num_steps == 1
