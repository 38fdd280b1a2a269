"""Large clusters are planned as equal cells: the figures add up, and more devices never give less."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.plan import Plan, PlanQuestion, Verdict
from sim.search import cells, search
from tests.sim.search.queue_model import question, queue_model


@pytest.fixture(autouse=True)
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "CELL_DEVICES", 3)


def of_nodes(nodes: int, rate: float | None = None) -> PlanQuestion:
    asked = question()
    group = replace(asked.groups[0], nodes=nodes, devices_per_node=1)
    return replace(asked, groups=(group,), rate=rate)


def planned(asked: PlanQuestion) -> Plan:
    return search(asked, run=queue_model, recheck=None)


def goodput(plan: Plan) -> float:
    return plan.best.goodput.mid if plan.best else 0.0


def test_a_small_cluster_is_no_cell() -> None:
    assert not cells.is_large(of_nodes(3))
    assert cells.is_large(of_nodes(4))


def test_a_plan_of_cells_is_so_many_of_one() -> None:
    large = planned(of_nodes(12))
    one = search(cells._cell(of_nodes(12), 4, 3, None), run=queue_model, recheck=None)
    assert one.best is not None
    assert large.best is not None
    assert large.best.cluster.gpus == 4 * one.best.cluster.gpus
    assert goodput(large) == pytest.approx(4 * goodput(one))
    assert large.best.goodput_per_gpu == pytest.approx(one.best.goodput_per_gpu)
    assert large.curve[0].rate == pytest.approx(4 * one.curve[0].rate)
    assert any("4 equal cells" in note and "of 12 devices" in note for note in large.notes)


def test_more_devices_never_give_less() -> None:
    found = [goodput(planned(of_nodes(nodes))) for nodes in (6, 7, 8, 9, 10)]
    assert found == sorted(found)


def test_a_rate_takes_as_few_cells_as_carry_it() -> None:
    one = goodput(planned(of_nodes(3)))
    low, high = planned(of_nodes(12, 0.8 * one)), planned(of_nodes(12, 1.7 * one))
    assert low.best is not None
    assert high.best is not None
    assert low.best.cluster.gpus <= 3 < high.best.cluster.gpus <= 6
    assert Verdict.INFEASIBLE not in (low.verdict, high.verdict)
    assert goodput(high) >= 1.7 * one * 0.99


def test_a_rate_beyond_all_cells_is_infeasible_and_says_what_they_carry() -> None:
    plan = planned(of_nodes(12, 100 * goodput(planned(of_nodes(12)))))
    assert plan.verdict is Verdict.INFEASIBLE
    assert plan.shortfall is not None
    assert plan.shortfall.feasible_rate == pytest.approx(goodput(planned(of_nodes(12))), rel=0.1)


def test_a_cell_has_its_share_of_the_requests() -> None:
    asked = of_nodes(12)
    cell = cells._cell(asked, 4, 3, None)
    assert len(cell.workload) == round(len(asked.workload) / 4)
    assert cell.groups[0].devices == 3
    assert not cells.is_large(cell)
