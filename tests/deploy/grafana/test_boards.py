"""The boards: as their program writes them, and of metrics that are really exported."""

from __future__ import annotations

import importlib.util
import json
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.exported import kv_metrics, router_metrics
from tests.support.promql import Exported, asked_of

_FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "grafana"
_FILES = sorted(_FOLDER.glob("*.json"))


def _program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("boards", _FOLDER / "boards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _panels(file: Path) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["panels"]
    return panels


def test_the_files_are_what_the_program_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "boards", ModuleType("boards"))  # where dataclasses look for its names
    program = _program()
    boards = program.boards()
    assert {f.name for f in _FILES} == set(boards)
    for file in _FILES:
        written = file.read_text(encoding="utf-8")
        assert written == program.text_of(boards[file.name]), "run: python deploy/grafana/boards.py"


async def test_every_metric_and_label_of_a_board_is_exported(tmp_path: Path) -> None:
    exported = Exported(await router_metrics(), kv_metrics(tmp_path))
    found = [
        f"{file.name}, {panel['title']}: {fault}"
        for file in _FILES
        for panel in _panels(file)
        for target in panel.get("targets", ())
        for fault in exported.faults(target["expr"].replace("$__rate_interval", "5m"))
    ]
    assert not found, "\n".join(found)
    asked = {a.name for f in _FILES for p in _panels(f) for t in p.get("targets", ()) for a in asked_of(t["expr"])}
    assert len(asked) > 35


@pytest.mark.parametrize("file", _FILES, ids=lambda file: file.stem)
def test_panels_have_numbers_of_their_own_and_do_not_overlap(file: Path) -> None:
    panels = _panels(file)
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        for g in (panel["gridPos"] for panel in panels)
    ]
    assert all(x < 24 for some in cells for x, _ in some)
    assert not any(one & other for one, other in combinations(cells, 2))
    for panel in panels:
        assert panel["type"] == "row" or (panel["description"] and panel["targets"])


def test_the_check_sees_what_is_not_exported() -> None:
    exported = Exported('# HELP a A.\n# TYPE a counter\na_total{x="1"} 1\n')
    assert not list(exported.faults('sum by (x, worker) (rate(a_total{x="1", job="j"}[5m]))'))
    assert set(exported.faults('sum by (y) (rate(a_total{x="2", z=~"q"}[5m])) / b_total')) == {
        "a_total has no x='2'",
        "a_total has no label z",
        "no metric b_total",
        'nothing in \'sum by (y) (rate(a_total{x="2", z=~"q"}[5m])) / b_total\' has a label y',
    }
