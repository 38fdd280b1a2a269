"""A proof as text, JSON and a page.

Owns wording and pictures. Must not judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from bench.goodput_plot import Curve, Panel
from bench.serving import page
from bench.serving.curves import against_scale, cdf, of_class
from bench.serving.metrics import promises
from bench.serving.proof import ClassVerdict, Proof, RatePoint, SlowestTimeline, Verdict
from bench.serving.result import Json, interval_json
from bench.serving.statistics import Estimate
from sim.figures import percent, plain, with_interval
from sim.plan import Interval

_MARKS: Final = {Verdict.KEPT: "good", Verdict.NOT_KEPT: "bad", Verdict.CANNOT_TELL: "open"}
_SAID: Final = {
    Verdict.KEPT: "the promise is kept",
    Verdict.NOT_KEPT: "the promise is not kept",
    Verdict.CANNOT_TELL: "nobody can tell yet whether the promise is kept",
}
_MOST: Final = 5  # errors, findings


def proof_lines(proof: Proof) -> list[str]:
    """Write the proof in lines."""
    lines = [f"{proof.config}: {_SAID[proof.verdict]}", ""]
    lines += _class_table(proof.classes)
    lines += ["", *(f"{name:<12} {words}" for name, words, _ in _checks(proof))]
    lines += [f"note: {note}" for note in proof.notes]
    lines += [f"the client was a bottleneck: {problem}" for problem in proof.run.health.problems]
    lines += [f"error, {count} times: {text}" for text, count in proof.metrics.errors[:_MOST]]
    return lines


def _class_table(classes: Sequence[ClassVerdict]) -> Iterator[str]:
    head = f"{'class':<14} {'TTFT':>9} {'TPOT':>8} {'promised':>8}  {'planned':<16} {'measured':<16}"
    yield f"{head} {'requests':>8}  verdict"
    for found in classes:
        promised = found.targets
        yield (
            f"{found.name or 'all':<14} {plain(promised.ttft_ms):>6} ms {plain(promised.tpot_ms):>5} ms "
            f"{plain(100 * promised.attainment):>6} %  {_planned(found):<16} {_measured(found):<16} "
            f"{found.attainment.count:>8}  {found.verdict}{f': {found.why}' if found.why else ''}"
        )


def _checks(proof: Proof) -> Iterator[tuple[str, str, str]]:
    """Name what was looked at beside attainment: words, and a mark where it matters."""
    metrics, ttft, tpot = proof.metrics, proof.metrics.distributions["ttft"], proof.metrics.distributions["tpot"]
    yield "rate", f"{plain(proof.rate)} requests/s of {proof.traffic}, {plain(metrics.duration_s)} s", ""
    if proof.plan is not None:
        yield "plan", f"keeps the promise up to {with_interval(proof.plan.goodput)} requests/s", ""
    else:
        yield "plan", "none: the pools were named, not planned", ""
    goodput = f"{plain(metrics.request_goodput)} requests/s"
    per = f", {plain(metrics.request_goodput / proof.devices)} for each of {proof.devices} devices"
    yield "goodput", goodput + (per if proof.devices else ""), ""
    yield "TTFT", _quantiles(ttft.percentiles), ""
    yield "TPOT", _quantiles(tpot.percentiles), ""
    yield "parity", proof.parity.words(), "bad" if proof.parity.is_broken else "good" if proof.parity.paired else "open"
    if proof.ledger is None:
        yield "ledger", "not read: no engine here hands KV over", "open"
    elif proof.ledger:
        yield "ledger", "; ".join(proof.ledger[:_MOST]), "bad"
    else:
        yield "ledger", "balanced on every worker", "good"
    yield "calibration", *_calibration(proof)
    if (seen := proof.foreseen) is not None:
        spread = f"{plain(seen.low)} to {plain(seen.high)} in 90 % of {seen.requests:,} requests"
        yield "foreseen", f"TTFT is {plain(seen.median)} times what was predicted (median), {spread}", ""


def _calibration(proof: Proof) -> tuple[str, str]:
    known = [c for c in proof.calibration if c.coverage is not None]
    lost = [f"{c.slo_class} {c.quantity} ({c.reason})" for c in proof.calibration if c.is_refuted]
    if lost:
        return f"predictions are not believed: {', '.join(lost)}", "open"
    if not known:
        return "the router predicts nothing yet", "open"
    told = [f"{c.slo_class} {c.quantity} {100 * (c.coverage or 0.0):.0f} % of {c.outcomes}" for c in known]
    words = f"outcomes within the router's 90 % interval: {', '.join(told)}"
    wide = [f"{c.slo_class} {c.quantity}" for c in known if not c.is_covered]
    if wide:
        return f"{words}; outside the band that chance allows: {', '.join(wide)}", "open"
    if not all(c.is_trusted for c in known):
        return f"{words}: too few to tell yet", "open"
    return f"believed; {words}", "good"


def proof_json(proof: Proof) -> dict[str, Json]:
    """Write everything for programs."""
    return {
        "ok": proof.verdict is Verdict.KEPT,
        "verdict": proof.verdict.value,
        "config": proof.config,
        "url": proof.url,
        "model": proof.model,
        "request_rate": proof.rate,
        "traffic": proof.traffic,
        "interval_confidence": 0.9,
        "classes": [_class_json(found) for found in proof.classes],
        "request_goodput": proof.metrics.request_goodput,
        "devices": proof.devices,
        "plan": None
        if proof.plan is None
        else {
            "rate": proof.plan.rate,
            "goodput": _finite(proof.plan.goodput.mid),
            "goodput_interval": interval_json(proof.plan.goodput),
        },
        "parity": {
            "asked": proof.parity.asked,
            "paired": proof.parity.paired,
            "differing": [*proof.parity.differing],
        },
        "ledger": None if proof.ledger is None else [*proof.ledger],
        "calibration": [
            {"slo_class": c.slo_class, "quantity": c.quantity, "coverage": c.coverage, "trusted": c.is_trusted}
            for c in proof.calibration
        ],
        "ttft_over_predicted": None
        if proof.foreseen is None
        else {"median": proof.foreseen.median, "p5": proof.foreseen.low, "p95": proof.foreseen.high},
        "ttft_stages_ms": None if proof.stages is None else dict(proof.stages.mean_ms),
        "curve": [
            {"request_rate": p.rate, "attainment": dict(p.attainment), "request_goodput": p.goodput}
            for p in proof.curve
        ],
        "client_problems": [*proof.run.health.problems],
        "error_counts": [{"error": text, "count": count} for text, count in proof.metrics.errors],
        "notes": [*proof.notes],
    }


def _class_json(found: ClassVerdict) -> dict[str, Json]:
    return {
        "slo_class": found.name or None,
        "ttft_ms": _finite(found.targets.ttft_ms),
        "tpot_ms": _finite(found.targets.tpot_ms),
        "attainment_target": found.targets.attainment,
        "planned": None if found.planned is None else _finite(found.planned.mid),
        "planned_interval": None if found.planned is None else interval_json(found.planned),
        "attainment": _finite(found.attainment.mid),
        "attainment_interval": interval_json(found.attainment.interval),
        "requests": found.attainment.count,
        "verdict": found.verdict.value,
        "why": found.why,
    }


def proof_page(proof: Proof) -> str:
    """Draw everything on one page."""
    lead = page.paragraph(_SAID[proof.verdict].capitalize(), _MARKS[proof.verdict])
    lead += page.paragraph(f"{proof.config}, {proof.model} at {proof.url}. Intervals are of 90 %.", "soft")
    checks = [(name, page.Cell(words, mark)) for name, words, mark in _checks(proof)]
    notes = [*proof.notes, *(f"the client: {problem}" for problem in proof.run.health.problems)]
    notes += [f"error, {count} times: {text}" for text, count in proof.metrics.errors[:_MOST]]
    sections = [
        page.section("By class", _class_page(proof.classes)),
        page.section("What was looked at", page.table(("", ""), checks), page.listed(notes)),
        page.section("Attainment and goodput", page.figure([*_against_rate(proof), *_against_scale(proof)])),
        page.section("Distributions", page.figure(_cdfs(proof))),
    ]
    if proof.stages is not None:
        rows = [(stage, f"{ms:.2f}") for stage, ms in proof.stages.mean_ms.items()]
        sections.append(page.section("Where the time to the first token went", page.table(("stage", "mean, ms"), rows)))
    if proof.slowest is not None:
        sections.append(_slowest(proof.slowest))
    return page.page(f"Proof of {proof.config}", lead, sections)


def _slowest(found: SlowestTimeline) -> str:
    parts = [*found.stages, ("output", found.output_ms)]
    words = ", ".join(f"{name} {ms:.1f} ms" for name, ms in parts if ms >= 0.05)
    return page.section(
        f"Time line of the request that waited longest for its first token, {found.request_id}",
        page.bar(parts),
        page.paragraph(words, "soft"),
    )


def _class_page(classes: Sequence[ClassVerdict]) -> str:
    rows = [
        (
            found.name or "all",
            f"{plain(found.targets.ttft_ms)} ms",
            f"{plain(found.targets.tpot_ms)} ms",
            f"{plain(100 * found.targets.attainment)} %",
            _planned(found),
            _measured(found),
            str(found.attainment.count),
            page.Cell(f"{found.verdict}{f': {found.why}' if found.why else ''}", _MARKS[found.verdict]),
        )
        for found in classes
    ]
    return page.table(("class", "TTFT", "TPOT", "promised", "planned", "measured", "requests", "verdict"), rows)


def _against_rate(proof: Proof) -> list[Panel]:
    named = list(promises(proof.targets))
    curves = [_rate_curve(name, proof.curve, is_ours=name == named[0]) for name in named]
    goodput = [Curve("measured", tuple((p.rate, p.goodput) for p in proof.curve), is_ours=True)]
    if proof.plan is not None:
        top = max(point.rate for point in proof.curve)
        foreseen = [point for point in proof.plan.curve if point.rate <= 1.5 * top]
        goodput.append(Curve("planned", tuple((p.rate, p.goodput) for p in foreseen)))
        curves += [_rate_curve(name, foreseen, suffix=", planned") for name in named]
    levels = tuple({100 * targets.attainment for targets in promises(proof.targets).values()})
    per = max(1, proof.devices)
    per_device = [Curve(c.name, tuple((x, y / per) for x, y in c.points), c.is_ours) for c in goodput]
    offered = "offered, requests/s"
    return [
        Panel("attainment, %", tuple(curves), offered, levels),
        Panel("goodput for each device, requests/s", tuple(per_device), offered),
    ]


def _rate_curve(name: str, points: Sequence[RatePoint], *, is_ours: bool = False, suffix: str = "") -> Curve:
    known = tuple((p.rate, 100 * p.attainment[name]) for p in points if name in p.attainment)
    return Curve(f"{name or 'all'}{suffix}", known, is_ours)


def _against_scale(proof: Proof) -> list[Panel]:
    curves: list[Curve] = []
    for name, targets in promises(proof.targets).items():
        own = of_class(proof.run.timings, name, proof.targets)
        curves.append(against_scale(name or "all", own, targets, is_ours=not curves))
    levels = tuple({100 * targets.attainment for targets in promises(proof.targets).values()})
    return [Panel("attainment against SLO scale, %", tuple(curves), "both targets times", levels)]


def _cdfs(proof: Proof) -> list[Panel]:
    titles = {
        "ttft": "TTFT: % of requests within",
        "tpot": "TPOT: % of requests within",
        "itl": "ITL: % of gaps within",
    }
    return [
        Panel(title, (cdf("measured", proof.metrics.distributions[name].values, is_ours=True),), "ms")
        for name, title in titles.items()
    ]


def _planned(found: ClassVerdict) -> str:
    return "-" if found.planned is None else percent(found.planned)


def _measured(found: ClassVerdict) -> str:
    return percent(found.attainment.interval) if found.attainment.count else "-"


def _quantiles(percentiles: Sequence[tuple[float, Estimate]]) -> str:
    return ", ".join(f"P{p:g} {_ms(estimate.interval)}" for p, estimate in percentiles if p in (50.0, 90.0, 99.0))


def _ms(interval: Interval) -> str:
    return f"{plain(interval.mid)} ms ({plain(interval.low)}..{plain(interval.high)})"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
