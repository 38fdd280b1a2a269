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
