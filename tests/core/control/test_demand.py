"""The memory of lengths: what is asked for now, from what has ended."""

from __future__ import annotations

import pytest

from core.control.actions import RequestSample
from core.control.demand import LengthMemory, Traffic


def ended(
    arrived_s: float, prompt: int, output: int, *, stay_s: float = 0.0, outcome: str = "ok", slo_class: str = "chat"
) -> RequestSample:
    tpot_s = stay_s / max(1, output - 1)
    return RequestSample(arrived_s, slo_class, prompt, 0, output, 0.0, tpot_s, 0.0, True, outcome)


def memory(least: int = 1) -> LengthMemory:
    return LengthMemory(("chat", "batch"), window_s=20.0, least=least, longest_s=600.0)


def test_nothing_is_known_before_a_request_has_ended() -> None:
    assert memory().demand(1.0, 0.0) is None


def test_only_the_window_counts_where_it_has_enough() -> None:
    lengths = memory()
    lengths.observe([ended(0.0, 100, 10)] * 50, 1.0, each=1.0)
    lengths.observe([ended(95.0, 300, 30)] * 5, 100.0, each=1.0)
    demand = lengths.demand(2.0, 100.0)
    assert demand is not None
    assert (len(demand), demand.mean_prompt, demand.mean_output) == (5, 300.0, 30.0)
    assert demand.traffic == Traffic(2.0, 600.0, 60.0)


def test_too_few_are_made_up_for_by_older_ones() -> None:
    lengths = memory(least=20)
    lengths.observe([ended(0.0, 100, 10)] * 50, 1.0, each=1.0)
    lengths.observe([ended(95.0, 300, 30)] * 5, 100.0, each=1.0)
    demand = lengths.demand(1.0, 100.0)
    assert demand is not None
    assert len(demand) == 20


def test_those_that_stay_stand_for_those_that_have_not_ended() -> None:
    # In equal parts arrivals stay for nothing or for 10 s; of the latter only the first half of the window has ended.
    lengths = memory()
    lengths.observe([ended(float(at), 100, 1) for at in range(20)], 20.0, each=1.0)
    lengths.observe([ended(float(at), 100, 101, stay_s=10.0) for at in range(10)], 20.0, each=1.0)
    demand = lengths.demand(1.0, 20.0)
    assert demand is not None
    assert demand.mean_output == pytest.approx((1 + 101) / 2)


def test_a_refused_request_has_the_output_of_one_like_it() -> None:
    lengths = memory()
    lengths.observe([ended(0.0, 100, 10), ended(0.0, 4000, 500)] * 5, 1.0, each=1.0)
    lengths.observe([ended(100.0, 3900, 0, outcome="rejected")], 101.0, each=1.0)
    demand = lengths.demand(1.0, 101.0)
    assert demand is not None
    assert demand.output_tokens.tolist() == [500.0]


def test_what_has_no_class_of_the_promise_is_left_out() -> None:
    lengths = memory()
    lengths.observe([ended(0.0, 100, 10, slo_class="other")], 1.0, each=1.0)
    assert lengths.demand(1.0, 1.0) is None
