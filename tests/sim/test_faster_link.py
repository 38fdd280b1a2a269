"""A faster link is tried only where the way of the KV may be why one pool wins, and the slowest that pays is named."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from sim.cluster import LinkSpec, Mode
from sim.faster_link import LINKS_BYTES_PER_S, link_busy, room_for_two, strictest, transfer_s, try_faster_link
from sim.plan import Interval, Plan, PlanQuestion, Progress, Verdict
from tests.support.plans import BATCH, CHAT, apart, candidate, plan, question, together

CLEARLY_MORE = Interval(1.7, 1.8, 1.9)
ONE = candidate(together(), (10.0, 11.0, 12.0), group=(0,))


def slow(bytes_per_s: float = 2e9, *, prompt_tokens: int = 1000, kv_bytes_per_token: int = 1_000_000) -> PlanQuestion:
    """Ask of eight devices in one node, whose KV of a prompt takes half a second: longer than the TTFT of 400 ms."""
    asked = question()
    group = asked.groups[0]
    link = LinkSpec(bytes_per_s, kv_bytes_per_token=kv_bytes_per_token)
    measured = replace(group.profile, kv_bytes_per_token=kv_bytes_per_token)
    group = replace(group, profile=measured, nodes=1, devices_per_node=8, inner_link=link, outer_link=link)
    workload = replace(asked.workload, prompt_tokens=np.full(4, prompt_tokens))
    return replace(asked, groups=(group,), workload=workload)


@dataclass
class Apart:
    """A search whose prefill and decode carry 20 requests/s from a bandwidth on, and `beneath` that beneath it."""

    from_bytes_per_s: float
    beneath: float = 0.0  # requests/s
    ratio: Interval | None = CLEARLY_MORE  # to one pool, with the fastest link
    asked: list[PlanQuestion] = field(default_factory=list)

    def __call__(self, question: PlanQuestion, *, progress: Progress | None = None) -> Plan:
        self.asked.append(question)
        link = question.fixed.link if question.fixed else question.groups[0].inner_link
        rate = self.beneath if link.bytes_per_s < self.from_bytes_per_s else 20.0
        if not rate:
            return plan()
        found = candidate(replace(apart(), link=link), (0.95 * rate, rate, 1.05 * rate))
        return plan(p_d=found, ratio=None if question.fixed else self.ratio)


def test_the_slowest_link_that_pays_is_named() -> None:
    search = Apart(12.5e9)
    found = try_faster_link(plan(verdict=Verdict.ONE_POOL, one=ONE), slow(), search)
    assert found is not None
    assert (found.bytes_per_s, found.pays) == (12.5e9, True)
    assert found.candidate is not None
    assert found.candidate.cluster.link.bytes_per_s == 12.5e9
    first = search.asked[0]
    assert (first.modes, first.groups[0].inner_link.bytes_per_s) == (slow().modes, 50e9)
    assert [q.fixed is None for q in search.asked] == [True, False, False, False]


def test_where_no_link_pays_the_fastest_is_told() -> None:
    found = try_faster_link(plan(verdict=Verdict.ONE_POOL, one=ONE), slow(), Apart(1e12))
    assert found is not None
    assert (found.bytes_per_s, found.candidate, found.pays) == (LINKS_BYTES_PER_S[-1], None, False)
    for ratio in (Interval(0.6, 0.7, 0.8), Interval(0.9, 1.2, 1.5)):  # less than one pool; perhaps more
        found = try_faster_link(plan(verdict=Verdict.ONE_POOL, one=ONE), slow(), Apart(0.0, ratio=ratio))
        assert found is not None
        assert (found.bytes_per_s, found.candidate is None, found.pays) == (LINKS_BYTES_PER_S[-1], False, False)


def test_a_slower_link_pays_only_while_what_is_left_of_the_ratio_is_clear() -> None:
    for beneath, slowest_that_pays in ((15.0, LINKS_BYTES_PER_S[0]), (11.0, 12.5e9)):  # 1.28 and 0.94 at the low end
        found = try_faster_link(plan(verdict=Verdict.ONE_POOL, one=ONE), slow(), Apart(12.5e9, beneath))
        assert found is not None
        assert (found.bytes_per_s, found.pays) == (slowest_that_pays, True)


def test_where_one_pool_keeps_nothing_any_link_pays_with_which_something_is_kept() -> None:
    found = try_faster_link(plan(verdict=Verdict.ONE_POOL, one=ONE), slow(), Apart(25e9, ratio=None))
    assert found is not None
    assert (found.bytes_per_s, found.pays) == (25e9, True)


def test_a_rate_that_is_asked_for_is_a_matter_of_price() -> None:
    asked = replace(slow(), rate=11.0)
    small = plan(verdict=Verdict.ONE_POOL, one=replace(ONE, price_per_hour=8.0))
    found = try_faster_link(small, asked, Apart(0.0))
    assert found is not None
    assert not found.pays  # as many devices
    dear = plan(verdict=Verdict.ONE_POOL, one=replace(ONE, price_per_hour=9.0))
    found = try_faster_link(dear, asked, Apart(6e9))
    assert found is not None
    assert (found.bytes_per_s, found.pays) == (6.25e9, True)


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        (plan(p_d=candidate(apart(), (19.0, 20.0, 21.0)), one=ONE), slow()),  # P/D wins as it is
        (plan(verdict=Verdict.INFEASIBLE, one=ONE), slow()),
        (plan(verdict=Verdict.ONE_POOL, one=ONE), slow(prompt_tokens=9)),  # a transfer of 5 ms
        (plan(verdict=Verdict.ONE_POOL, one=ONE), slow(60e9, prompt_tokens=10_000)),  # none faster can be bought
        (plan(verdict=Verdict.ONE_POOL, one=ONE), replace(slow(), fixed=together())),
        (plan(verdict=Verdict.ONE_POOL, one=candidate(together(1), (1, 2, 3))), replace(slow(), rate=1.0)),
        (plan(verdict=Verdict.ONE_POOL, one=ONE), replace(slow(), modes=(Mode.ONE_POOL_CHUNKED,))),
    ],
)
def test_nothing_is_searched_where_the_link_is_not_why(answer: Plan, asked: PlanQuestion) -> None:
    search = Apart(0.0)
    assert try_faster_link(answer, asked, search) is None
    assert search.asked == []


def test_one_device_has_no_use_for_a_link() -> None:
    asked = slow()
    alone = replace(asked, groups=(replace(asked.groups[0], devices_per_node=1),))
    assert (room_for_two(asked), room_for_two(alone)) == (True, False)
    assert try_faster_link(plan(verdict=Verdict.ONE_POOL, one=ONE), alone, Apart(0.0)) is None


def test_a_busy_link_is_reason_enough() -> None:
    asked = slow(prompt_tokens=100)  # 50 ms of 400
    # 20 requests/s of 100 MB over three links of 1 GB/s.
    cluster = replace(apart(), link=LinkSpec(1e9, kv_bytes_per_token=1_000_000))
    behind = candidate(cluster, (8.0, 20.0, 9.0))
    assert link_busy(cluster, 20.0, asked) == pytest.approx(2 / 3)
    assert link_busy(together(), 20.0, asked) == 0.0
    assert try_faster_link(plan(verdict=Verdict.ONE_POOL, one=ONE, p_d=behind), asked, Apart(0.0)) is not None


def test_the_time_of_a_transfer_and_the_class_it_hurts_most() -> None:
    assert transfer_s(slow()) == pytest.approx(0.5)
    asked = question(BATCH, CHAT)
    assert strictest(replace(asked, workload=replace(asked.workload, slo_class=np.array([0, 1, 0, 0])))) == CHAT
    assert strictest(asked) == BATCH  # a workload without classes is of the first
