"""The sums follow the legs: nothing is left when all have ended, whatever their order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.inflight import InflightWork
from core.types import Leg


def test_each_leg_counts_for_what_it_does_there() -> None:
    work = InflightWork()
    work.add(Leg.DECODE, 100, 1.0)
    assert work == InflightWork(context_tokens=100)
    work.add(Leg.WHOLE, 10, 2.0)
    work.add(Leg.PREFILL, 4, 3.0)
    assert work == InflightWork(2, 14, 58.0, 110, prompting_since_s=2.0)


def test_next_prompt_has_its_turn_when_one_is_done() -> None:
    work = InflightWork()
    work.add(Leg.PREFILL, 10, 1.0)
    work.add(Leg.PREFILL, 20, 2.0)
    work.prompt_done(10, 5.0)
    assert work == InflightWork(1, 20, 200.0, 0, prompting_since_s=5.0)
    work.prompt_done(20, 7.0)
    assert work == InflightWork()


@given(tokens=st.lists(st.integers(1, 1 << 20), max_size=50), data=st.data())
def test_sums_end_at_exactly_zero(tokens: list[int], data: st.DataObject) -> None:
    work = InflightWork()
    for n in tokens:
        work.add(Leg.PREFILL, n, 0.0)
    for n in data.draw(st.permutations(tokens)):
        work.prompt_done(n, 1.0)
    assert work == InflightWork()


@given(targets=st.lists(st.sampled_from((0.02, 0.05, 0.2)), max_size=20), data=st.data())
def test_the_tightest_target_is_of_those_that_run(targets: list[float], data: st.DataObject) -> None:
    work = InflightWork()
    for tpot_s in targets:
        work.promise(tpot_s)
    running = list(targets)
    for tpot_s in data.draw(st.permutations(targets)):
        assert work.tightest_tpot_s == min(running)
        work.promise_over(tpot_s)
        running.remove(tpot_s)
    assert work.tightest_tpot_s is None
    assert work == InflightWork()
