"""Large clusters as equal cells: one cell is searched, and the plan is so many of it.

Owns how a cluster is cut and how a cell's plan is scaled. A router over all cells does at least as well as the cells
apart, so what is reported is, if anything, too low. More devices never give less: cutting into cells of CELL_DEVICES,
with the rest idle, is always among what is tried. Must not know how one cell is searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sim.plan import Candidate, DeviceGroup, Interval, Plan, PlanQuestion, Verdict
from sim.workload import Workload

CELL_DEVICES = 64

SearchCell = Callable[[PlanQuestion], Plan]


def is_large(question: PlanQuestion) -> bool:
    """Say whether the devices are more than one cell; unlike groups and a given placement are taken whole."""
    return question.fixed is None and len(question.groups) == 1 and question.groups[0].nodes > _cell_nodes(question)


def search_in_cells(question: PlanQuestion, search_cell: SearchCell) -> Plan:
    """Search one cell and scale its plan; with a rate, as few cells as carry it."""
    nodes, cell_nodes = question.groups[0].nodes, _cell_nodes(question)
    full = nodes // cell_nodes
    if question.rate is None:
        plan = _cells(question, full, cell_nodes, None, search_cell)
        more = full + 1
        if nodes % cell_nodes:  # the same devices in more, smaller cells
            other = _cells(question, more, nodes // more, None, search_cell)
            plan = max(plan, other, key=_goodput)
        return plan
    alone = search_cell(_cell(question, 1, cell_nodes, question.rate, cells_of_trace=full))
    if alone.verdict is not Verdict.INFEASIBLE:
        return alone
    carried = alone.shortfall.feasible_rate if alone.shortfall else None
    needed = min(full, math.ceil(question.rate / carried)) if carried else full
    return _cells(question, needed, cell_nodes, question.rate / needed, search_cell)


def scaled(plan: Plan, cells: int, devices: int) -> Plan:
    """Return the plan of so many equal cells; `devices` are those of all, for the note."""
    shortfall = plan.shortfall
    if shortfall is not None and shortfall.feasible_rate is not None:
        shortfall = replace(shortfall, feasible_rate=shortfall.feasible_rate * cells)
    used = plan.best.cluster.gpus * cells if plan.best else 0
    note = f"planned as {cells} equal cells, each simulated by itself; of {devices} devices {used} are used"
    return replace(
        plan,
        best=_scaled(plan.best, cells),
        best_one_pool=_scaled(plan.best_one_pool, cells),
        best_disaggregated=_scaled(plan.best_disaggregated, cells),
        front=tuple(_times(candidate, cells) for candidate in plan.front),
        curve=tuple(replace(p, rate=p.rate * cells, goodput=p.goodput * cells) for p in plan.curve),
        shortfall=shortfall,
        notes=(*plan.notes, note),
    )


def _cells(question: PlanQuestion, cells: int, nodes: int, rate: float | None, search_cell: SearchCell) -> Plan:
    return scaled(search_cell(_cell(question, cells, nodes, rate)), cells, question.groups[0].devices)


def _cell(
    question: PlanQuestion, cells: int, nodes: int, rate: float | None, cells_of_trace: int | None = None
) -> PlanQuestion:
    """Ask for one cell: its nodes, and its share of the requests, drawn one by one as a router would deal them."""
    share = 1.0 / (cells_of_trace or cells)
    group: DeviceGroup = replace(question.groups[0], nodes=nodes)
    return replace(question, groups=(group,), workload=_thinned(question.workload, share), rate=rate)


def _thinned(workload: Workload, share: float) -> Workload:
    count = max(1, round(len(workload) * share))
    chosen = np.sort(np.random.default_rng(0).choice(len(workload), count, replace=False))
    return workload.chosen(chosen)


def _cell_nodes(question: PlanQuestion) -> int:
    return max(1, CELL_DEVICES // question.groups[0].devices_per_node)


def _goodput(plan: Plan) -> float:
    return plan.best.goodput.mid if plan.best else 0.0


def _scaled(candidate: Candidate | None, cells: int) -> Candidate | None:
    return None if candidate is None else _times(candidate, cells)


def _times(candidate: Candidate, cells: int) -> Candidate:
    cluster, goodput = candidate.cluster, candidate.goodput
    prefill = cluster.prefill
    return replace(
        candidate,
        cluster=replace(
            cluster,
            decode=replace(cluster.decode, replicas=cluster.decode.replicas * cells),
            prefill=replace(prefill, replicas=prefill.replicas * cells) if prefill else None,
        ),
        goodput=Interval(goodput.low * cells, goodput.mid * cells, goodput.high * cells),
        price_per_hour=candidate.price_per_hour * cells,
    )
