"""A comparison as text, JSON and a page.

Owns wording and pictures. Must not compute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.goodput_plot import Curve, Panel
from bench.serving import page
from bench.serving.comparison import Ratio
from bench.serving.curves import against_scale, cdf, of_class
from bench.serving.metrics import ClassTargets, promises
from bench.serving.result import Json, interval_json
from bench.serving.segments import Side
from sim.figures import plain

_MARKS = {"better": "good", "worse": "bad"}


@dataclass(frozen=True, slots=True)
class AtRate:
    """Both sides at one rate."""

    rate: float  # inf: a closed loop
    first: Side
    second: Side
    ratios: tuple[Ratio, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that was compared."""

    points: tuple[AtRate, ...]  # by rate
    targets: ClassTargets
    traffic: str
    gpus: tuple[int | None, int | None] = (None, None)

    @property
    def names(self) -> tuple[str, str]:
        """Both sides."""
        return self.points[0].first.name, self.points[0].second.name


def comparison_lines(found: Comparison) -> list[str]:
    """Write a table for each rate."""
    first, second = found.names
    lines = [f"A = {first}", f"B = {second}", f"traffic: {found.traffic}", "ratios are B / A with their 90 % intervals"]
    for point in found.points:
        lines += ["", _rate_words(point)]
        lines.append(f"{'metric':<16} {'A':>10} {'B':>10}   {'B / A':<24} B is")
        for ratio in point.ratios:
            lines.append(
                f"{_label(ratio):<16} {_figure(ratio, ratio.first):>10} {_figure(ratio, ratio.second):>10}   "
                f"{_interval(ratio):<24} {ratio.verdict}"
            )
        for side, letter in ((point.first, "A"), (point.second, "B")):
            lines += [f"{letter}: {text}, {count} times" for text, count in side.metrics.errors[:2]]
            lines += [f"{letter}: the client was the bottleneck: {problem}" for problem in side.run.health.problems]
    return lines


def comparison_json(found: Comparison) -> dict[str, Json]:
    """Write everything for programs."""
    return {
        "first": found.names[0],
        "second": found.names[1],
        "traffic": found.traffic,
        "interval_confidence": 0.9,
        "rates": [
            {
                "request_rate": point.rate if math.isfinite(point.rate) else "inf",
                "requests": len(point.first.run.timings),
                "request_goodput": [point.first.metrics.request_goodput, point.second.metrics.request_goodput],
                "metrics": [_ratio_json(ratio) for ratio in point.ratios],
                "client_problems": [*point.first.run.health.problems, *point.second.run.health.problems],
            }
            for point in found.points
        ],
    }


def comparison_page(found: Comparison) -> str:
    """Draw everything on one page."""
    first, second = found.names
    lead = page.paragraph(f"A is {first}, B is {second}. Traffic: {found.traffic}. Ratios are B / A, intervals 90 %.")
    sections = [page.section(_rate_words(point), _ratio_table(point)) for point in found.points]
    if len(found.points) > 1 and found.targets:
        sections.insert(0, page.section("Against the rate", page.figure(_against_rate(found))))
    last = found.points[-1]
    if found.targets:
        sections.append(
            page.section(f"Attainment against SLO scale, {_rate_words(last)}", page.figure(_against_scale(found, last)))
        )
    sections.append(page.section(f"Distributions, {_rate_words(last)}", page.figure(_cdfs(found, last))))
    return page.page(f"{first} and {second}", lead, sections)


def _ratio_table(point: AtRate) -> str:
    rows = [
        (
            _label(ratio),
            _figure(ratio, ratio.first),
            _figure(ratio, ratio.second),
            _interval(ratio),
            page.Cell(ratio.verdict, _MARKS.get(ratio.verdict, "")),
        )
        for ratio in point.ratios
    ]
    return page.table(("metric", "A", "B", "B / A", "B is"), rows)


def _against_rate(found: Comparison) -> list[Panel]:
    attainment, goodput = [], []
    for number, name in enumerate(found.names):
        sides = [(p.rate, p.first if number == 0 else p.second) for p in found.points]
        per = found.gpus[number] or 1
        worst = [(rate, 100 * min(c.attainment.mid for c in side.metrics.classes)) for rate, side in sides]
        attainment.append(Curve(name, tuple(worst), is_ours=number == 0))
        goodput.append(Curve(name, tuple((r, s.metrics.request_goodput / per) for r, s in sides), is_ours=number == 0))
    per_gpu = " for each GPU" if all(found.gpus) else ""
    levels = tuple({100 * t.attainment for t in promises(found.targets).values()})
    offered = "offered, requests/s"
    return [
        Panel("attainment, %, worst class", tuple(attainment), offered, levels),
        Panel(f"goodput, requests/s{per_gpu}", tuple(goodput), offered),
    ]


def _against_scale(found: Comparison, point: AtRate) -> list[Panel]:
    panels = []
    for name, targets in promises(found.targets).items():
        own = [of_class(side.run.timings, name, found.targets) for side in (point.first, point.second)]
        if any(own):
            curves = tuple(
                against_scale(label, timings, targets, is_ours=label == found.names[0])
                for label, timings in zip(found.names, own, strict=True)
            )
            title = f"attainment, %{f', {name}' if name else ''}"
            panels.append(Panel(title, curves, "both targets times", (100 * targets.attainment,)))
    return panels


def _cdfs(found: Comparison, point: AtRate) -> list[Panel]:
    titles = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}
    return [
        Panel(
            f"{title}: % of requests within" if name != "itl" else "ITL: % of gaps within",
            tuple(
                cdf(label, side.metrics.distributions[name].values, is_ours=label == found.names[0])
                for label, side in zip(found.names, (point.first, point.second), strict=True)
            ),
            "ms",
        )
        for name, title in titles.items()
    ]


def _ratio_json(ratio: Ratio) -> dict[str, Json]:
    return {
        "metric": ratio.name,
        "unit": ratio.unit,
        "first": _finite(ratio.first),
        "second": _finite(ratio.second),
        "ratio": _finite(ratio.ratio.mid),
        "ratio_interval": interval_json(ratio.ratio),
        "second_is": ratio.verdict,
    }


def _rate_words(point: AtRate) -> str:
    requests = f"{len(point.first.run.timings):,} requests"
    return f"{plain(point.rate)} requests/s, {requests}" if math.isfinite(point.rate) else f"{requests}, closed loop"


def _label(ratio: Ratio) -> str:
    return f"{ratio.name}{f', {ratio.unit}' if ratio.unit else ''}"


def _figure(ratio: Ratio, value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.2f}" if ratio.unit else f"{100 * value:.1f} %"


def _interval(ratio: Ratio) -> str:
    if not math.isfinite(ratio.ratio.mid):
        return "-"
    return f"{ratio.ratio.mid:.3f} ({ratio.ratio.low:.3f}..{ratio.ratio.high:.3f})"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
