"""A worker that fails request after request is left alone, ever longer but never for ever, and trusted again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.policy.breaker import NONE_LEFT_OUT, Breakers, BreakerSettings, BreakerState

SETTINGS = BreakerSettings(failures=3, first_s=1.0, max_s=5.0)


def tripped(now_s: float = 0.0) -> Breakers:
    breakers = Breakers(SETTINGS)
    for _ in range(3):
        breakers.failed("d", now_s)
    return breakers


def test_third_failure_in_a_row_leaves_the_worker_out() -> None:
    breakers = Breakers(SETTINGS)
    for _ in range(2):
        breakers.failed("d", 0.0)
        assert breakers.left_out(0.0) == NONE_LEFT_OUT
    breakers.failed("d", 0.0)
    assert breakers.left_out(0.5) == {"d"}
    assert (breakers.state("d", 0.5), breakers.state("e", 0.5)) == (BreakerState.OPEN, BreakerState.CLOSED)


def test_success_between_failures_starts_the_count_anew() -> None:
    breakers = Breakers(SETTINGS)
    for _ in range(5):
        breakers.failed("d", 0.0)
        breakers.failed("d", 0.0)
        breakers.succeeded("d")
    assert breakers.left_out(0.0) == NONE_LEFT_OUT


def test_one_request_finds_out() -> None:
    breakers = tripped()
    assert breakers.state("d", 1.0) is BreakerState.HALF_OPEN
    assert breakers.left_out(1.0) == NONE_LEFT_OUT
    breakers.sent("d", 1.0)
    assert breakers.left_out(1.0) == {"d"}
    breakers.succeeded("d")
    assert (breakers.left_out(1.0), breakers.state("d", 1.0)) == (NONE_LEFT_OUT, BreakerState.CLOSED)


def test_time_out_doubles_up_to_its_bound() -> None:
    breakers, now_s, outs = tripped(), 0.0, []
    for _ in range(5):
        began_s = now_s
        while breakers.left_out(now_s):
            now_s += 0.25
        outs.append(now_s - began_s)
        breakers.sent("d", now_s)
        breakers.failed("d", now_s)
    assert outs == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_failures_of_requests_sent_before_change_nothing() -> None:
    breakers = tripped()
    for _ in range(100):
        breakers.failed("d", 0.5)
    assert breakers.left_out(1.0) == NONE_LEFT_OUT


def test_probe_whose_outcome_is_never_known_is_replaced() -> None:
    breakers = tripped()
    breakers.sent("d", 1.0)
    assert breakers.left_out(1.9) == {"d"}
    assert breakers.left_out(2.0) == NONE_LEFT_OUT


def test_worker_that_is_gone_is_forgotten() -> None:
    breakers = tripped()
    breakers.keep_only(frozenset({"e"}))
    assert breakers.left_out(0.0) == NONE_LEFT_OUT


steps = st.lists(st.tuples(st.sampled_from(["failed", "succeeded", "sent"]), st.sampled_from("ab"), st.floats(0, 3)))


@given(steps)
def test_nobody_is_left_out_for_longer_than_the_bound(history: list[tuple[str, str, float]]) -> None:
    """Invariants: without news everyone is back after max_s, and a success brings a worker back at once."""
    breakers, now_s = Breakers(SETTINGS), 0.0
    for what, worker, passed_s in history:
        now_s += passed_s
        if what == "succeeded":
            breakers.succeeded(worker)
            assert worker not in breakers.left_out(now_s)
        elif what == "failed":
            breakers.failed(worker, now_s)
        elif worker not in breakers.left_out(now_s):
            breakers.sent(worker, now_s)
        assert breakers.left_out(now_s + SETTINGS.max_s) == NONE_LEFT_OUT
