"""What the tables and the picture say of results whose outcome is known."""

from __future__ import annotations

from bench.fleet.goodput import Measured
from bench.fleet.record import SceneFound, SystemFound
from bench.fleet.report import best_other, best_peer, picture, report
from bench.fleet.systems import BATON, DISTSERVE, ONE_POOL, ONE_POOL_BATON


def system(name: str, *goodput: float) -> SystemFound:
    curve = ((goodput[0] / 2, 1.0), (goodput[0], 0.9)) if goodput[0] else ()
    return SystemFound(name, f"pools of {name}" if goodput[0] else "", Measured(goodput, curve))


def scene(traffic: str, *, one_pool: float, apart: float, planned: str) -> SceneFound:
    """Make a scene of ten GPUs in which the other draw is 1 % off for all."""
    systems = {ONE_POOL: 20.0, DISTSERVE: 0.0, "P/D, random": 15.0, "P/D, least loaded": 25.0}
    systems |= {ONE_POOL_BATON: one_pool, BATON: apart}
    found = tuple(system(name, rate, 1.01 * rate) for name, rate in systems.items())
    return SceneFound("ten", 10, traffic, "500/15", "some verdict", planned, found, 1.0, (35.0, 5.0))


CODE = scene("code", one_pool=30.0, apart=40.0, planned=BATON)
CHAT = scene("chat", one_pool=50.0, apart=40.0, planned=BATON)
NONE = scene("long", one_pool=0.0, apart=0.0, planned="")


def test_the_best_of_the_others_is_found() -> None:
    assert best_peer(CODE) == "P/D, least loaded"
    assert best_other(CODE) == "P/D, least loaded"
    assert best_other(scene("x", one_pool=90.0, apart=1.0, planned=BATON)) == "P/D, least loaded"


def test_the_row_has_goodput_for_each_gpu_and_the_ratios() -> None:
    (row,) = [line for line in report([CODE]) if line.startswith("| code") and "pools of" not in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "code, 500/15"
    assert [cell.split(" ")[0] for cell in cells[1:6]] == ["2", "0", "2.5", "3", "4"]
    assert cells[6:] == ["P/D", "2.00 [2.00..2.00]", "1.60 [1.60..1.60]"]


def test_pools_of_everybody_are_told() -> None:
    assert any(f"pools of {BATON}" in line and f"pools of {ONE_POOL}" in line for line in report([CODE]))
    assert any(line.endswith("| 3.5, 0.5 |") for line in report([CODE]))


def test_a_wrong_choice_of_the_planner_is_named() -> None:
    text = "\n".join(report([CODE, CHAT, NONE]))
    assert "One pool clearly better than P/D, both with Baton's routing: ten, chat, 500/15." in text
    assert "P/D clearly better: ten, code, 500/15." in text
    assert "Of these 2 the planner chose the better in 1; not in ten, chat, 500/15." in text
    assert "clearly more in 2 of 3, clearly less in 1." in text


def test_the_picture_has_a_panel_for_every_scene() -> None:
    drawn = picture([CODE, CHAT, NONE])
    assert drawn.startswith("<svg")
    assert [drawn.count(f">ten: {traffic} 500/15<") for traffic in ("code", "chat", "long")] == [1, 1, 1]
