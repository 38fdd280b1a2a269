"""How rounds become a verdict."""

from __future__ import annotations

from bench.chaos.faults import Broken, Fault, Scene
from bench.chaos.report import as_json, markdown, passed
from bench.chaos.suite import Result, Round
from bench.chaos.traffic import Answer, Verdict


async def nothing(scene: Scene) -> Broken:
    return Broken("nothing")


FAULT = Fault("kill-it", "it is killed", nothing)
ROUTER = Fault("kill-router", "the router is killed", nothing, cuts_clients=True)


def answers(*verdicts: Verdict) -> tuple[Answer, ...]:
    return tuple(Answer(0, 0.0, 1.0, verdict, "why") for verdict in verdicts)


def result(*verdicts: Verdict, fault: Fault = FAULT, recovery_s: float | None = 3.0, ledger: str = "") -> Result:
    found = Round(fault.name, "done", answers(*verdicts), recovery_s, (ledger,) if ledger else ())
    return Result(fault, (found,))


def test_all_right_passes() -> None:
    assert result(*[Verdict.RIGHT] * 100).failures() == []


def test_one_error_in_a_hundred_is_allowed_and_two_are_not() -> None:
    assert result(*[Verdict.RIGHT] * 99, Verdict.ERROR).failures() == []
    assert "98.0% right" in result(*[Verdict.RIGHT] * 98, *[Verdict.ERROR] * 2).failures()[0]


def test_a_single_wrong_or_hung_answer_fails() -> None:
    for verdict in (Verdict.WRONG, Verdict.HUNG, Verdict.CUT):
        assert result(*[Verdict.RIGHT] * 1000, verdict).failures() == [f"1 {verdict} (why)"]


def test_connections_may_break_with_the_router_and_only_with_it() -> None:
    assert result(*[Verdict.RIGHT] * 9, Verdict.CUT, fault=ROUTER).failures() == []
    assert result(*[Verdict.RIGHT] * 9, Verdict.WRONG, fault=ROUTER).failures() == ["1 wrong (why)"]


def test_clients_that_left_are_not_judged() -> None:
    assert result(*[Verdict.LEFT] * 50, Verdict.RIGHT).failures() == []


def test_what_does_not_come_back_or_does_not_balance_fails() -> None:
    assert result(Verdict.RIGHT, recovery_s=None).failures() == ["not recovered in 1 of 1 rounds"]
    assert result(Verdict.RIGHT, ledger="decode-0: 4 blocks held").failures() == ["ledger: decode-0: 4 blocks held"]


def test_a_run_that_broke_nothing_has_not_passed() -> None:
    skipped = Result(FAULT, (), "not made: no ready decode")
    assert not passed([skipped])
    assert passed([skipped, result(Verdict.RIGHT)])
    assert "not made: no ready decode" in markdown([skipped], "run")


def test_the_table_and_the_values_say_the_same() -> None:
    found = [result(*[Verdict.RIGHT] * 3, Verdict.WRONG)]
    table = markdown(found, "run")
    assert "| kill-it | 1 | 4 | 3 | 0 | 0 | 0 | 1 | 0 | 3.0 s, 3.0 at most | **failed** |" in table
    values = as_json(found)
    assert values["ok"] is False
    assert isinstance(values["faults"], list)
    assert values["faults"][0]["answers"]["wrong"] == 1


def test_a_round_is_told_with_what_its_clients_got() -> None:
    done = Round("kill-it", "killed", answers(Verdict.ERROR, *[Verdict.RIGHT] * 2), 3.04, (), 0.26)
    assert done.told() == "killed, back after 3.0 s; answers: 2 right, 1 error (why); hand-overs settled after 0.3 s"
    assert "never back; answers: none" in Round("kill-it", "killed", (), None, ()).told()
