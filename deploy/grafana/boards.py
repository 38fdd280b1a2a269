"""The Grafana boards: `python deploy/grafana/boards.py` makes the JSON files beside it of boards.yaml.

Owns layout and what Grafana wants around a panel. What is shown stands in boards.yaml.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).resolve().parent
Json = dict[str, Any]

_SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
_COLUMNS: Final = 24
_HEIGHT: Final = 8


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and what its lines are called."""

    legend: str
    expr: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture; see boards.yaml."""

    title: str
    text: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    most: float | None = None
    steps: tuple[tuple[str, float | None], ...] = (("green", None),)


def boards() -> dict[str, Json]:
    """Make every board, by the name of its file."""
    found = yaml.safe_load((FOLDER / "boards.yaml").read_text(encoding="utf-8"))
    return {f"{name}.json": _board(board) for name, board in found.items()}


def _panel_of(given: Json) -> Panel:
    steps = tuple((str(color), value) for color, value in given.get("steps", (("green", None),)))
    return Panel(**{**given, "queries": tuple(Query(**query) for query in given["queries"]), "steps": steps})


def _board(given: Json) -> Json:
    panels: list[Json] = []
    y = 0
    for row in given["rows"]:
        place = _at(0, y, _COLUMNS, 1)
        panels.append({"type": "row", "title": row["name"], "collapsed": False, "panels": [], "gridPos": place})
        y, x = y + 1, 0
        for panel in map(_panel_of, row["panels"]):
            if x + panel.width > _COLUMNS:
                y, x = y + _HEIGHT, 0
            panels.append(_panel(panel, x, y))
            x += panel.width
        y += _HEIGHT
    for number, made in enumerate(panels, 1):
        made["id"] = number
    return {
        "uid": given["uid"],
        "title": given["title"],
        "tags": ["baton"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "links": [{"type": "dashboards", "tags": ["baton"], "title": "Baton", "asDropdown": False, "keepTime": True}],
        "templating": {"list": [_source_variable(), _class_variable()]},
        "annotations": {"list": []},
        "panels": panels,
    }


def _panel(panel: Panel, x: int, y: int) -> Json:
    defaults: Json = {"unit": panel.unit, "min": 0, "thresholds": _thresholds(panel)}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if panel.stacked else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": stacking,
        }
        options: Json = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        calculated = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        options = {"reduceOptions": calculated, "colorMode": "value", "graphMode": "area", "textMode": "auto"}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": _at(x, y, panel.width, _HEIGHT),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend}
            for i, query in enumerate(panel.queries)
        ],
    }


def _thresholds(panel: Panel) -> Json:
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in panel.steps]}


def _at(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}


def _source_variable() -> Json:
    return {"name": "source", "label": "Source", "type": "datasource", "query": "prometheus", "current": {}, "hide": 0}


def _class_variable() -> Json:
    query = "label_values(baton_slo_attainment_target_ratio, class)"
    return {
        "name": "class",
        "label": "SLO class",
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "class"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def text_of(board: Json) -> str:
    """Write a board as its file has it."""
    return json.dumps(board, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every board."""
    for name, board in boards().items():
        (FOLDER / name).write_text(text_of(board), encoding="utf-8")


if __name__ == "__main__":
    main()
