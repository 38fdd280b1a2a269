"""A plan says what it assumes."""

from __future__ import annotations

from sim.cluster import Admission, ClusterSpec, Mode, Order, PoolSpec, Routing
from sim.search.goodput import step_below
from sim.search.notes import Findings, notes_on
from sim.search.placements import Placement
from sim.search.race import Found
from tests.sim.search.queue_model import question, shape

PLAIN = Findings(seeds=3)


def notes_of(routing: Routing, *, rate: float = 0.5, copies: int = 1, findings: Findings = PLAIN) -> str:
    pool = PoolSpec(copies, shape().cost, 60_000)
    cluster = ClusterSpec(Mode.DISAGGREGATED, pool, pool, routing=routing)
    found = Found(Placement(cluster, (0, 0), 2.0, copies=copies), step_below(rate), 0)
    return "\n".join(notes_on(question(), found, findings))


def test_only_the_resolution_is_said_of_a_plain_plan() -> None:
    assert notes_of(Routing()) == "goodput is searched in steps of 0.5%, over 3 seeds"


def test_what_the_router_must_do_is_said() -> None:
    assert "refuses requests predicted to miss the TTFT target" in notes_of(Routing(admission=Admission.TTFT))
    assert "miss either target" in notes_of(Routing(admission=Admission.TTFT_AND_TPOT))
    assert "queued by slack" in notes_of(Routing(order=Order.SLACK))


def test_units_and_short_runs_are_said() -> None:
    assert "2 equal units" in notes_of(Routing(), copies=2)
    assert "longer trace" in notes_of(Routing(), rate=500.0)


def test_a_limit_and_a_missing_check_are_said() -> None:
    assert "longer trace" in notes_of(Routing(), findings=Findings(3, limited=True))
    assert "not checked with the router's own policies" in notes_of(Routing(), findings=Findings(3, unchecked=True))
