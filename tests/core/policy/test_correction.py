"""What is made of a worker's steps beside their cost; see tests.support.contexts.COST.

- The factor is what most steps say, whatever the others do, as long as they are fewer than half.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.step import Step
from core.policy.correction import SpeedCorrection
from core.types import Role, WorkerSpeed, WorkerState
from tests.support.contexts import COST


def observed(factors: list[float], role: Role = Role.DECODE) -> WorkerSpeed:
    correction = SpeedCorrection(COST, role)
    for factor in factors:
        correction.observe_decode(4, 1000, COST.decode_s(4, 1000) * factor)
    return correction.speed


def test_a_slow_worker_is_known_by_its_steps() -> None:
    assert observed([1.5] * 7) == WorkerSpeed()
    assert observed([1.5] * 8).decode_factor == pytest.approx(1.5)
    assert observed([1.5] * 100).decode_spread == pytest.approx(0)
    assert observed([3.0] * 100 + [1.5] * 100).decode_factor == pytest.approx(1.5)


def test_steps_that_scatter_give_a_spread() -> None:
    speed = observed([0.9, 1.0, 1.1] * 20)
    assert speed.decode_factor == pytest.approx(1.0)
    assert speed.decode_spread == pytest.approx(0.1, abs=0.01)


@given(st.lists(st.floats(0.001, 1000.0), max_size=25), st.randoms(use_true_random=False))
def test_stalls_do_not_move_the_factor(stalls: list[float], random: object) -> None:
    steps = [2.0] * 30 + stalls
    random.shuffle(steps)  # type: ignore[attr-defined]
    assert observed(steps).decode_factor == pytest.approx(2.0, rel=0.011)


def test_prompts_and_decode_steps_are_told_apart() -> None:
    correction = SpeedCorrection(COST, Role.PREFILL)
    for _ in range(20):
        correction.observe_prompt(500, 125_000.0, 3 * COST.seconds(Step(500, 1, 125_000.0)))
    assert correction.speed.prefill_factor == pytest.approx(3.0)
    assert correction.speed.decode_factor == 1.0


@pytest.mark.parametrize(
    ("role", "state", "prefill", "decode"),
    [
        (Role.PREFILL, WorkerState(step_s=0.12, step_prompt_tokens=500, step_seqs=2), 2.0, 1.0),
        (Role.DECODE, WorkerState(step_s=0.12, step_prompt_tokens=500, step_seqs=9), 1.0, 1.0),
        (Role.DECODE, WorkerState(kv_blocks_used=10, step_s=3 * 0.01232, step_seqs=2), 1.0, 3.0),
        (Role.DECODE, WorkerState(), 1.0, 1.0),
    ],
)
def test_a_step_says_what_it_was(role: Role, state: WorkerState, prefill: float, decode: float) -> None:
    correction = SpeedCorrection(COST, role)
    for _ in range(20):
        correction.observe_step(state, block_size=32)
    assert (correction.speed.prefill_factor, correction.speed.decode_factor) == pytest.approx((prefill, decode))


def test_the_speed_is_the_same_object_while_nothing_of_note_changes() -> None:
    correction = SpeedCorrection(COST, Role.DECODE)
    for _ in range(64):
        correction.observe_decode(1, 0, 0.011 * 1.5)
    before = correction.speed
    for _ in range(64):
        correction.observe_decode(1, 0, 0.011 * 1.505)
    assert correction.speed is before
