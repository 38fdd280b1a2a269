"""The state follows the engine's steps, and tells only of those that matter."""

from __future__ import annotations

from core.types import WorkerState
from engine.step_state import StepFigures, StepState


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
