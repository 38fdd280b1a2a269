"""Both kinds are always told: a figure for each, or why it has none, and which link would change that."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sim.comparison import comparison, per_gpu, placement, steps
from sim.faster_link import FasterLink
from sim.plan import Interval, Plan, Verdict
from tests.sim.test_faster_link import ONE, slow
from tests.support.plans import apart, candidate, plan, question, together

P_D = candidate(apart(), (13.1, 14.2, 15.0))
ONE_WINS = plan(verdict=Verdict.ONE_POOL, one=ONE)


def said(answer: Plan = ONE_WINS, *, faster: FasterLink | None = None) -> str:
    return " ".join(" ".join(comparison(answer, slow(), faster)).split())


def test_prefill_and_decode_without_a_figure_say_why() -> None:
    assert said().startswith(
        "prefill and decode keeps the promise at no rate: the KV of a mean prompt takes 500 ms at 2 GB/s (16 Gbit/s), "
        "and chat has 400 ms to its first token one pool 11.0 (10.0..12.0) requests/s, 1.38 per GPU, one pool 8 x tp1 "
        "in steps of 2048 tokens"
    )
    alone = slow()
    alone = replace(alone, groups=(replace(alone.groups[0], devices_per_node=1),))
    assert "it takes two workers, and the devices hold one" in " ".join(comparison(ONE_WINS, alone))
    assert comparison(ONE_WINS, question())[0] == "prefill and decode  keeps the promise at no rate"


def test_a_figure_of_zero_is_no_figure() -> None:
    none = candidate(apart(), (0.0, 0.0, 0.0))
    lines = comparison(plan(verdict=Verdict.ONE_POOL, one=ONE, p_d=none), question())
    assert [line.split("  ")[0] for line in lines if not line.startswith(" ")] == ["prefill and decode", "one pool"]
    assert lines[0] == "prefill and decode  keeps the promise at no rate"


def test_within_the_devices_that_a_rate_needs_no_more_is_claimed() -> None:
    one = plan(verdict=Verdict.ONE_POOL, one=candidate(together(1), (1, 2, 3), group=(0,)))
    asked = replace(question(), rate=2.0)
    assert "on so few devices: it takes two workers, and one pool carries the rate with one" in " ".join(
        " ".join(comparison(one, asked)).split()
    )
    assert comparison(ONE_WINS, asked)[0].endswith("keeps the promise at no rate on the 8 devices that one pool needs")


def test_one_pool_without_a_figure_is_told_too() -> None:
    assert "one pool            keeps the promise at no rate" in comparison(plan(p_d=P_D), question())


@pytest.mark.parametrize(
    ("faster", "words"),
    [
        (
            FasterLink(12.5e9, P_D, pays=True),
            "with 12.5 GB/s (100 Gbit/s) of KV from each worker P/D 3 x tp1 + 5 x tp1 would carry 14.2 (13.1..15.0) "
            "requests/s and pay; --inner-bandwidth and --bandwidth plan for it",
        ),
        (FasterLink(50e9, P_D, pays=False), "would carry 14.2 (13.1..15.0) requests/s, not clearly more"),
        (
            FasterLink(50e9, candidate(apart(), (4.0, 5.0, 6.0)), pays=False),
            "5.0 (4.0..6.0) requests/s, not clearly more",
        ),
        (FasterLink(50e9, None, pays=False), "not even with 50 GB/s (400 Gbit/s) of KV from each worker would"),
    ],
)
def test_the_link_that_would_change_it_is_named(faster: FasterLink, words: str) -> None:
    assert words in said(faster=faster)
    assert max(map(len, comparison(ONE_WINS, slow(), faster))) <= 100


def test_a_named_placement_has_nothing_beside_it_but_its_link() -> None:
    assert comparison(plan(p_d=P_D), replace(question(), fixed=apart())) == []
    busy = replace(P_D, cluster=replace(apart(), link=slow().groups[0].inner_link))
    assert "100 % busy" in " ".join(comparison(plan(p_d=busy), replace(slow(), fixed=apart())))


def test_nothing_that_fits_is_nothing_to_compare() -> None:
    assert comparison(plan(verdict=Verdict.INFEASIBLE), question()) == []


def test_names_and_figures_of_a_placement() -> None:
    assert placement(apart(3, 5, hybrid=True)) == "hybrid 3 x tp1 + 5 x tp1"
    assert placement(together(2, tp=4), ("B",)) == "one pool 2 x tp4 B"
    assert per_gpu(P_D) == "1.77"
    assert steps(apart()) == "8192"  # what its decode workers compute of prompts is nothing
    assert steps(apart(hybrid=True)) == "8192 + 2048"
    assert steps(together(chunk=512)) == "512"


def test_the_ratio_is_told_with_its_interval_and_what_it_comes_to() -> None:
    found = plan(p_d=P_D, one=ONE, ratio=Interval(1.1, 1.3, 1.5))
    assert said(found).endswith("1.30 (1.10..1.50) times as much apart, in equal draws")
    doubtful = replace(found, verdict=Verdict.UNCLEAR, ratio=Interval(0.7, 1.3, 1.5), own_policy=(13.0, 10.0))
    assert said(doubtful).endswith(
        "the router's own policy keeps 13 apart and 10 together: 1.3 (0.7..1.5) times as much apart, in equal draws; "
        "no clear difference"
    )
    only = replace(found, ratio=Interval(1.1, math.inf, math.inf), own_policy=(13.0, 0.0))
    assert said(only).endswith("keeps 13 apart and 0 together: something only apart")
