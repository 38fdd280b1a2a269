"""The decider on a cluster that does at once what it is told.

Invariants, whatever the traffic: sizes never leave the limits nor exceed the most workers; flips name ready workers of
the other role; no flip is taken back within the cool-down; equal observations give equal decisions.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from core.control.actions import Decision, PoolSizes, Verdict
from core.control.decider import Settings, SizingDecider
from core.types import Role
from tests.support.control import Watched, service, sum_of

MOST = 10
LONG_PROMPT, LONG_OUTPUT = (2000, 10), (50, 400)
INTERVALS = st.lists(
    st.tuples(st.integers(0, 900), st.sampled_from([LONG_PROMPT, LONG_OUTPUT, (300, 100)]), st.floats(0.0, 1.0)),
    min_size=1,
    max_size=60,
)


def decider(**changes: float) -> SizingDecider:
    return SizingDecider(service(), Settings(most_workers=MOST, **changes))  # type: ignore[arg-type]


def settled(
    watched: Watched, made: SizingDecider, arrived: int, lengths: tuple[int, int], rounds: int
) -> list[Decision]:
    decisions = []
    for _ in range(rounds):
        decision = made.decide(watched.seen(arrived, lengths))
        watched.apply(decision)
        decisions += [decision] if decision else []
    return decisions


@given(INTERVALS)
@settings(deadline=None, max_examples=60)
def test_whatever_comes_decisions_stay_within_bounds_and_cool_down(
    intervals: list[tuple[int, tuple[int, int], float]],
) -> None:
    watched, made = Watched(PoolSizes(3, 3), MOST), decider()
    flipped_s: dict[Role, float] = {}
    for arrived, lengths, kept in intervals:
        seen = watched.seen(arrived, lengths, kept=kept)
        decision = made.decide(seen)
        if decision is not None:
            assert watched.limits.allow(decision.sizes)
            assert sum_of(decision.sizes) <= MOST
            ready = {worker.worker_id: worker.role for worker in seen.workers}
            undone = "taken back" in decision.reason
            for flip in decision.flips:
                assert ready[flip.worker_id] is not flip.to
                away = flipped_s.get(Role.DECODE if flip.to is Role.PREFILL else Role.PREFILL, -1e9)
                assert undone or seen.now_s - away >= made.settings.cool_down_s
            for flip in decision.flips:
                flipped_s[flip.to] = seen.now_s
        watched.apply(decision)
        assert all(watched.sizes.of(role) >= 1 for role in Role)


@given(INTERVALS)
@settings(deadline=None, max_examples=20)
def test_equal_observations_give_equal_decisions(intervals: list[tuple[int, tuple[int, int], float]]) -> None:
    def told() -> list[Decision | None]:
        watched, made, found = Watched(PoolSizes(3, 3), MOST), decider(), []
        for arrived, lengths, kept in intervals:
            found.append(made.decide(watched.seen(arrived, lengths, kept=kept)))
            watched.apply(found[-1])
        return found

    assert [repr(decision) for decision in told()] == [repr(decision) for decision in told()]


def test_a_pool_that_is_too_small_takes_a_spare_worker_of_the_other_before_one_is_started() -> None:
    watched, made = Watched(PoolSizes(1, 5), MOST), decider()
    decisions = settled(watched, made, 70, LONG_PROMPT, 6)
    assert decisions
    assert all(flip.to is Role.PREFILL for decision in decisions for flip in decision.flips)
    assert sum(len(decision.flips) for decision in decisions) >= 1
    assert watched.sizes.prefill > 1
    assert sum_of(watched.sizes) == 6


def test_without_flips_the_same_is_done_by_one_that_goes_and_one_that_starts() -> None:
    watched = Watched(PoolSizes(1, 5), MOST)
    made = SizingDecider(service(), Settings(most_workers=MOST, may_flip=False))
    assert all(not decision.flips for decision in settled(watched, made, 70, LONG_PROMPT, 6))
    assert watched.sizes.prefill > 1


def test_steady_traffic_is_left_alone_once_pools_fit() -> None:
    watched, made = Watched(PoolSizes(5, 5), MOST), decider()
    settled(watched, made, 100, (300, 100), 60)
    assert settled(watched, made, 100, (300, 100), 120) == []


def test_fewer_workers_only_after_they_have_been_enough_for_long() -> None:
    watched, made = Watched(PoolSizes(5, 5), MOST), decider(down_after_s=100.0)
    assert settled(watched, made, 20, (300, 100), 10) == []
    assert sum_of(watched.sizes) == 10
    settled(watched, made, 20, (300, 100), 5)
    assert sum_of(watched.sizes) < 10


def test_pools_go_to_their_floor_when_traffic_stops() -> None:
    watched, made = Watched(PoolSizes(4, 4), MOST), decider(idle_s=60.0)
    settled(watched, made, 100, (300, 100), 3)
    settled(watched, made, 0, (300, 100), 7)
    assert watched.sizes == PoolSizes(1, 1)


def test_no_size_is_given_up_for_what_the_least_of_both_pools_forbids() -> None:
    watched, made = Watched(PoolSizes(4, 4), MOST), decider(idle_s=60.0, least_workers=8)
    settled(watched, made, 100, (300, 100), 3)
    settled(watched, made, 0, (300, 100), 40)
    assert sum_of(watched.sizes) == 8


def test_a_flip_after_which_attainment_falls_is_taken_back_and_told() -> None:
    watched, made = Watched(PoolSizes(1, 5), MOST), decider(settle_s=10.0, judge_s=30.0)
    while not any(role is Role.PREFILL for name, role in watched.roles.items() if name != "w00"):
        watched.apply(made.decide(watched.seen(70, LONG_PROMPT)))
    flipped = watched.sizes
    decisions = []
    for _ in range(12):
        decisions.append(made.decide(watched.seen(70, LONG_PROMPT, kept=0.3)))
        watched.apply(decisions[-1])
        if decisions[-1] is not None and "taken back" in decisions[-1].reason:
            break
    assert decisions[-1] is not None
    assert "taken back" in decisions[-1].reason
    assert watched.sizes.prefill < flipped.prefill
    assert [outcome.verdict for outcome in made.take_outcomes()] == [Verdict.WORSE]
    assert made.take_outcomes() == ()
