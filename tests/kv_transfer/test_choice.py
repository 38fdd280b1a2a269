"""Which transport is chosen.

Invariants, whatever was measured and whatever failed:
- what is chosen is offered by the peer and not excluded from this attempt;
- something is chosen unless every transport left has failed several times in a row and rests;
- in the long run the fastest gets nearly all, with noise in the measures, and after the network has changed;
- the choice does not flap: it changes at most once in SETTLE hand-overs, and once for each rest that begins or ends;
- a transport that fails rests between 1 s and 60 s.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.choice import LAST_RESORT_FAILURES, MAX_REST_S, PREFERENCE, RETRY_EVERY, SETTLE, Choice, WayReport

LARGE, SMALL = 64 << 20, 64 << 10
NAMES = st.sets(st.sampled_from([*PREFERENCE, "carrier-pigeon"]), min_size=1)


@dataclass
class Clock:
    """Time that a test moves."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@given(
    offered=NAMES,
    transport=st.sampled_from(["auto", *PREFERENCE]),
    steps=st.lists(
        st.tuples(
            st.sets(st.sampled_from(PREFERENCE)),
            st.sampled_from(["landed", "failed", "neither"]),
            st.sampled_from([None, 0, SMALL, LARGE]),
            st.floats(0, 100),
        ),
        max_size=80,
    ),
)
def test_only_what_the_peer_offers_and_what_has_not_failed_in_this_hand_over(
    offered: set[str], transport: str, steps: list[tuple[set[str], str, int | None, float]]
) -> None:
    clock = Clock()
    choice = Choice(offered, clock_s=clock, transport=transport)
    failures = dict.fromkeys(offered, 0)
    for excluded, outcome, num_bytes, seconds in steps:
        name = choice.pick(excluded=excluded, num_bytes=num_bytes)
        left = offered - excluded
        if name is None:
            assert transport != "auto" or all(failures[other] >= LAST_RESORT_FAILURES for other in left)
        else:
            assert name in left
            assert transport in ("auto", name) or (name == "grpc" and transport in excluded)
            if outcome == "landed":
                choice.done(name, num_bytes or 0, seconds)
                failures[name] = 0
            elif outcome == "failed":
                choice.failed(name)
                failures[name] += 1
        assert all(0 <= report.rests_s <= MAX_REST_S for report in choice.reports())
        clock.now_s += seconds


def test_the_unmeasured_are_taken_in_order_of_preference() -> None:
    choice = Choice({"grpc", "tcp", "shm"}, clock_s=Clock())
    assert [choice.pick(), choice.pick(excluded={"shm"}), choice.pick(excluded={"shm", "tcp"})] == [
        "shm",
        "tcp",
        "grpc",
    ]
    assert choice.pick(excluded={"shm", "tcp", "grpc"}) is None


@given(
    seconds=st.lists(st.floats(0.001, 1), min_size=2, max_size=4, unique=True),
    num_bytes=st.sampled_from([SMALL, LARGE]),
    seed=st.integers(0, 1000),
)
def test_the_fastest_gets_nearly_all_in_the_long_run(seconds: list[float], num_bytes: int, seed: int) -> None:
    rng = random.Random(seed)
    true_s = dict(zip(PREFERENCE, seconds, strict=False))
    choice = Choice(true_s, clock_s=Clock())
    taken = run(choice, true_s, num_bytes, rng, 1200)
    # Among transports that noise cannot tell apart either is right.
    best = {name for name, s in true_s.items() if s <= 1.5 * min(true_s.values())}
    share = sum(name in best for name in taken[400:]) / len(taken[400:])
    assert share >= 0.9


def test_a_network_that_has_changed_is_found_out() -> None:
    rng = random.Random(1)
    true_s = {"tcp": 0.1, "grpc": 0.2}
    choice = Choice(true_s, clock_s=Clock())
    assert run(choice, true_s, LARGE, rng, 400)[-50:].count("tcp") >= 49
    true_s["grpc"] = 0.02
    assert run(choice, true_s, LARGE, rng, 1500)[-50:].count("grpc") >= 49
    true_s["grpc"] = 1.0
    assert run(choice, true_s, LARGE, rng, 100)[-50:].count("tcp") >= 49


def test_looking_for_something_better_costs_little_however_slow_it_is() -> None:
    true_s = {"shm": 0.01, "grpc": 0.4}
    choice = Choice(true_s, clock_s=Clock())
    run(choice, true_s, LARGE, random.Random(2), 100)
    taken = run(choice, true_s, LARGE, random.Random(3), 20_000)
    assert 0 < sum(name == "grpc" for name in taken) * 0.4 <= 1.3 / RETRY_EVERY * len(taken) * 0.01


def test_large_and_small_hand_overs_are_judged_apart() -> None:
    choice = Choice({"tcp", "grpc"}, clock_s=Clock())
    seconds = {("tcp", LARGE): 0.02, ("grpc", LARGE): 0.06, ("tcp", SMALL): 0.003, ("grpc", SMALL): 0.001}
    for _ in range(100):
        for num_bytes in (LARGE, SMALL):
            name = choice.pick(num_bytes=num_bytes)
            assert name is not None
            choice.done(name, num_bytes, seconds[name, num_bytes])
    # The hand-over after a multiple of eight measures nothing.
    assert (choice.pick(num_bytes=LARGE), choice.pick(num_bytes=SMALL)) == ("tcp", "grpc")
    tcp, grpc = choice.reports()
    assert tcp.large_bytes_per_s == pytest.approx(LARGE / 0.02)
    assert grpc.small_s == pytest.approx(0.001)


@given(
    outcomes=st.lists(st.tuples(st.floats(0.001, 1), st.booleans()), min_size=200, max_size=400),
    gap_s=st.sampled_from([0.0, 0.1, 3.0]),
)
def test_the_choice_does_not_flap(outcomes: list[tuple[float, bool]], gap_s: float) -> None:
    clock = Clock()
    choice = Choice({"shm", "tcp", "grpc"}, clock_s=clock)
    favourites = []
    rests = 0
    for seconds, lands in outcomes:
        name = choice.pick(num_bytes=LARGE)
        favourites += [report.name for report in choice.reports() if report.is_favourite]
        if name is not None and lands:
            choice.done(name, LARGE, seconds)
        elif name is not None:
            rests += not next(report.rests_s for report in choice.reports() if report.name == name)
            choice.failed(name)
        clock.now_s += gap_s
    changes = sum(before != after for before, after in itertools.pairwise(favourites))
    assert changes <= len(outcomes) / SETTLE + rests


def test_a_failed_transport_rests_longer_each_time_and_success_forgives() -> None:
    clock = Clock()
    choice = Choice({"tcp", "grpc"}, clock_s=clock)
    rests = []
    for _ in range(8):
        choice.failed("tcp")
        choice.failed("tcp")  # another hand-over that was under way over it
        rests.append(report(choice, "tcp").rests_s)
        assert choice.pick() == "grpc"
        clock.now_s += rests[-1]
        assert choice.pick(excluded={"grpc"}) == "tcp"
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60]
    choice.done("tcp", LARGE, 0.1)
    choice.failed("tcp")
    assert report(choice, "tcp").rests_s == 1


def test_the_only_way_is_tried_again_at_once_but_not_for_ever() -> None:
    choice = Choice({"grpc"}, clock_s=Clock())
    for _ in range(LAST_RESORT_FAILURES):
        assert choice.pick() == "grpc"
        choice.failed("grpc")
    assert choice.pick() is None


def test_a_named_transport_is_the_only_one_except_to_save_a_hand_over() -> None:
    choice = Choice({"shm", "tcp", "grpc"}, clock_s=Clock(), transport="tcp")
    choice.failed("tcp")
    assert (choice.pick(), choice.pick(excluded={"tcp"})) == ("tcp", "grpc")
    assert choice.pick(excluded={"tcp", "grpc"}) is None
    assert Choice({"shm", "grpc"}, clock_s=Clock(), transport="tcp").pick() is None
    assert Choice({"grpc"}, clock_s=Clock(), transport="grpc").pick(excluded={"grpc"}) is None


def run(choice: Choice, true_s: dict[str, float], num_bytes: int, rng: random.Random, count: int) -> list[str]:
    """Hand over `count` times; each takes what is true, give or take 20 %, and one in 12 ten times as long."""
    taken = []
    for _ in range(count):
        name = choice.pick(num_bytes=num_bytes)
        assert name is not None
        slow = 10 if rng.random() < 1 / 12 else 1
        choice.done(name, num_bytes, true_s[name] * rng.uniform(0.8, 1.2) * slow)
        taken.append(name)
    return taken


def report(choice: Choice, name: str) -> WayReport:
    return next(report for report in choice.reports() if report.name == name)
