"""Figures, their spread and their ratios are taken round by round; windows with faults are named."""

from __future__ import annotations

from bench.core_wait import CoreTimes
from bench.router.figures import FIGURES, TESTS, Figure, Over, Results, Taken
from bench.router.window import Spread, Window

DIRECT = "no router"


def seen(p50: float, *, requests: int = 100, router_s: float = 0.0, **changes: object) -> Window:
    times = {"router": CoreTimes(router_s, 0.0)} if router_s else {}
    values: dict[str, object] = {"errors": 0, "first_error": "", "busy_cores": router_s, **changes}
    none = Spread()
    latency = Spread(p50, p50 * 2, p50 * 3)
    values = {"times": times, **values}
    return Window(1.0, requests, 0, latency=latency, ttft=none, relay=none, gap=none, **values)


def taken(target: str, index: int, window: Window, rss_mb: float = 0.0) -> Taken:
    return Taken(target, "u1", index, window, rss_mb)


def figure(label: str) -> Figure:
    return next(each for each in FIGURES if each.label.startswith(label))


ADDED, CPU = figure("1 connection: added p50"), figure("1 connection: CPU")


def test_what_is_added_is_over_the_direct_way_of_the_same_round() -> None:
    results = Results(
        [
            *(taken(DIRECT, index, seen(p50)) for index, p50 in enumerate((1.0, 2.0))),
            *(taken("ours", index, seen(p50)) for index, p50 in enumerate((1.5, 4.0))),
        ]
    )
    assert results.values(ADDED, "ours", DIRECT) == {0: 0.5, 1: 2.0}
    assert results.num_rounds == 2
    assert results.targets == (DIRECT, "ours")


def test_cpu_is_told_by_request() -> None:
    results = Results([taken(DIRECT, 0, seen(1.0)), taken("ours", 0, seen(1.0, requests=1000, router_s=0.1))])
    assert results.values(CPU, "ours", DIRECT) == {0: 100.0}


def test_ratios_are_within_rounds() -> None:
    """The machine is twice as slow in the second round: the ratio does not see it."""
    rounds = ((0.1, 0.2), (0.2, 0.4))
    windows = [taken(DIRECT, index, seen(1.0)) for index in range(2)]
    for index, (ours_s, theirs_s) in enumerate(rounds):
        windows.append(taken("ours", index, seen(1.0, router_s=ours_s)))
        windows.append(taken("theirs", index, seen(1.0, router_s=theirs_s)))
    assert Results(windows).ratios(CPU, "ours", "theirs", DIRECT) == [0.5, 0.5]


def test_a_round_without_an_answer_has_no_figure() -> None:
    results = Results([taken(DIRECT, 0, seen(1.0)), taken("ours", 0, seen(0.0, requests=0, errors=5))])
    assert results.values(ADDED, "ours", DIRECT) == {}


def test_spread_is_least_median_most() -> None:
    assert Over.of([3.0, 1.0, 2.0]) == Over(1.0, 2.0, 3.0)
    assert Over.of([]) is None


def test_memory_is_the_most_and_requests_are_all() -> None:
    results = Results([taken("ours", 0, seen(1.0), 90.0), taken("ours", 1, seen(1.0), 70.0)])
    assert results.rss_mb("ours") == 90.0
    assert results.num_requests("ours") == 200


def test_calm_windows_are_not_remarked_on() -> None:
    assert Results([taken("ours", 0, seen(1.0, router_s=0.9))]).remarks(DIRECT) == []


def test_errors_and_disturbed_windows_are_named() -> None:
    waiting = {"router": CoreTimes(0.5, 0.5)}
    windows = [
        taken("ours", 0, seen(1.0, errors=2, first_error="HTTP/1.1 500")),
        taken("theirs", 0, seen(1.0, times=waiting, busy_cores=1.5)),
    ]
    ours, theirs = Results(windows).remarks(DIRECT)
    assert ours == "u1, ours: 2 errors, the first: 'HTTP/1.1 500'"
    assert theirs == "u1, theirs: others used 1.00 to 1.00 cores, the router waited 50% to 50% for its core"


def test_a_full_load_side_is_named_where_a_router_is_measured() -> None:
    full = {"client": CoreTimes(0.5, 0.0), "mock": CoreTimes(0.48, 0.0)}
    windows = [taken(name, 0, seen(1.0, times=full, busy_cores=0.98)) for name in ("ours", DIRECT)]
    assert Results(windows).remarks(DIRECT) == ["u1, ours: client and engines filled their core in 1 of 1 rounds"]


def test_every_figure_is_of_a_test_and_every_test_gives_one() -> None:
    assert {each.test for each in FIGURES} == {test.name for test in TESTS}
