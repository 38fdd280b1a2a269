"""Workers that end are started again, later each time, and set aside when that is no use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.control.restarts import Restart, RestartPolicy, failures_since, next_restart

POLICY = RestartPolicy(first_delay_s=1, max_delay_s=10, max_failures=4, window_s=100, set_aside_s=300)


def test_each_failure_doubles_the_delay_until_the_worker_is_set_aside() -> None:
    at = [next_restart(POLICY, [0.0] * count, 0.0, chance=0.0) for count in (1, 2, 3, 4)]
    assert at == [Restart(1, False, 1), Restart(2, False, 2), Restart(4, False, 3), Restart(300, True, 4)]


def test_old_failures_are_forgiven() -> None:
    assert next_restart(POLICY, [0.0, 10.0, 200.0], 200.0, chance=0.0) == Restart(201, False, 1)


def test_a_failure_after_a_long_life_is_the_first_of_a_row_and_counts_all_the_same() -> None:
    assert next_restart(POLICY, [0.0, 1.0, 42.0], 42.0, chance=0.0) == Restart(43, False, 3)
    assert next_restart(POLICY, [0.0, 41.0, 42.0], 42.0, chance=0.0) == Restart(44, False, 3)
    assert next_restart(POLICY, [0.0, 30.0, 60.0, 90.0], 90.0, chance=0.0) == Restart(390, True, 4)


def test_one_that_was_set_aside_and_fails_again_is_set_aside_again() -> None:
    failures = (0.0, 1.0, 2.0, 3.0, 304.0)
    assert next_restart(POLICY, failures, 304.0, chance=0.0) == Restart(604, True, 4)


@given(
    gaps=st.lists(st.floats(0, 200), min_size=1, max_size=12),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_delays_are_bounded_and_never_negative(gaps: list[float], chance: float) -> None:
    failures: list[float] = []
    now_s = 0.0
    for gap_s in gaps:
        now_s += gap_s
        failures = [*failures_since(POLICY, failures, now_s), now_s]
        found = next_restart(POLICY, failures, now_s, chance=chance)
        longest_s = POLICY.set_aside_s if found.is_set_aside else POLICY.max_delay_s
        assert now_s < found.at_s <= now_s + longest_s
        assert len(failures) <= POLICY.max_failures + 1
