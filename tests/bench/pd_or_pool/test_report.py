"""Both verdicts side by side, of results whose outcome is known."""

from __future__ import annotations

from bench.pd_or_pool.cases import CHAT, LONG
from bench.pd_or_pool.planning import Predicted
from bench.pd_or_pool.report import cases_of, picture, report
from bench.pd_or_pool.serving import Seen
from bench.pd_or_pool.verdict import APART, POOL
from sim.outcome import Target
from sim.plan import Interval, Verdict
from tests.support.plans import plan

RATES = (1.0, 2.0, 3.0, 4.0)
TARGETS = [Target("relaxed", 1.0, 0.1), Target("steady output", 1.0, 0.05)]


def seen(workload: str, rate: float, tpot_ms: float) -> Seen:
    return Seen(workload, rate, (500.0,) * 40, (tpot_ms,) * 40, (3 * tpot_ms,) * 40, ())


TURNS = {
    APART: [[seen(CHAT, rate, 40.0) for rate in RATES] + [seen(LONG, rate, 400.0) for rate in RATES]],
    POOL: [[seen(CHAT, rate, 30.0 * rate) for rate in RATES] + [seen(LONG, rate, 20.0) for rate in RATES]],
}
PLAN = Predicted(
    Interval(3, 4, 5), Interval(1, 1.5, 2), APART, plan(verdict=Verdict.UNCLEAR, ratio=Interval(0.81, 1.23, 2.0))
)
PREDICTED = {(workload, target.name): PLAN for workload in (CHAT, LONG) for target in TARGETS}
FOUND = cases_of(TURNS, {CHAT: TARGETS, LONG: TARGETS}, PREDICTED)


def test_verdicts_are_measured_for_every_workload_and_promise() -> None:
    verdicts = {(case.workload, case.target.name): case.measured.verdict for case in FOUND}
    assert verdicts == {
        (CHAT, "relaxed"): APART,
        (CHAT, "steady output"): APART,
        (LONG, "relaxed"): POOL,
        (LONG, "steady output"): POOL,
    }


def test_a_verdict_that_the_planner_missed_is_told() -> None:
    rows = [line for line in report(FOUND, TURNS) if "steady output, 1000/50" in line]
    neither = "neither contradicts"
    assert [row.strip("| ").split(" | ")[-3:] for row in rows] == [["P/D", "yes", neither], ["one pool", "no", neither]]
    assert all("| no clear difference, 1.2 (0.81..2) times |" in row for row in rows)
    assert "at least 4" in rows[0]
    assert "| none |" in rows[1]


def test_attainment_and_the_longest_gaps_are_told_for_every_rate() -> None:
    (row,) = [line for line in report(FOUND, TURNS) if line.startswith(f"| {CHAT} | 3 |")]
    cells = row.strip("| ").split(" | ")
    assert cells[2:5] == ["40", "120", "270"]
    assert [cell.split(" ")[0] for cell in cells[5:]] == ["100", "100", "100", "0"]


def test_the_picture_has_rates_and_scales() -> None:
    drawn = picture(FOUND, TURNS)
    assert drawn.count("requests/s: % within") == 4
    assert drawn.count("times 1000/100 ms") == 2
