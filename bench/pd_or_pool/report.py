"""Both verdicts side by side, as Markdown and as a picture.

Owns wording. Must not measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.goodput_plot import Curve, Panel, plotted
from bench.pd_or_pool.planning import Predicted
from bench.pd_or_pool.serving import Seen
from bench.pd_or_pool.verdict import APART, POOL, Compared, agree, compare, merged
from bench.serving import statistics
from bench.serving.curves import SCALES
from sim.outcome import Target
from sim.plan import Interval

PLANNED, MEASURED = "predicted", "measured"
_SCALED_AT: Final = 2  # the rate, of those that rise, at which targets are scaled


@dataclass(frozen=True, slots=True)
class Case:
    """One workload under one promise."""

    workload: str
    target: Target
    predicted: Predicted
    measured: Compared


def cases_of(
    seen: Mapping[str, Sequence[Sequence[Seen]]],
    targets: Mapping[str, Sequence[Target]],
    predicted: Mapping[tuple[str, str], Predicted],
) -> list[Case]:
    """Judge what was measured; `seen` has the turns of each system, APART and POOL."""
    found = []
    for workload, each in targets.items():
        for target in each:
            apart, pool = (
                merged(
                    [
                        {s.rate: s.kept(target.ttft_s, target.tpot_s) for s in turn if s.workload == workload}
                        for turn in seen[name]
                    ]
                )
                for name in (APART, POOL)
            )
            measured = compare(apart, pool, target.attainment)
            found.append(Case(workload, target, predicted[workload, target.name], measured))
    return found


def report(found: Sequence[Case], seen: Mapping[str, Sequence[Sequence[Seen]]]) -> Iterator[str]:
    """Write the verdicts, the attainments they rest on, and what the client had to say."""
    yield (
        "| workload | promise, TTFT/TPOT ms | predicted: P/D | one pool | verdict | `baton plan` "
        "| measured: P/D | one pool | verdict | agree: predicted | `baton plan` |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for case in found:
        predicted, measured = case.predicted, case.measured
        cells = (
            case.workload,
            f"{case.target.name}, {_promise(case.target)}",
            _rate(predicted.apart),
            _rate(predicted.pool),
            predicted.verdict,
            _times(predicted),
            _rate(measured.apart, measured.top),
            _rate(measured.pool, measured.top),
            measured.verdict,
            agree(predicted.verdict, measured.verdict),
            agree(predicted.family, measured.verdict),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield from _attainments(found, seen)
    problems = sorted(
        {problem for turns in seen.values() for turn in turns for part in turn for problem in part.problems}
    )
    yield from (f"- {problem}" for problem in problems[:5])


def _attainments(found: Sequence[Case], seen: Mapping[str, Sequence[Sequence[Seen]]]) -> Iterator[str]:
    yield (
        "| workload | requests/s | requests | longest gap P99, ms: P/D | one pool | "
        + " | ".join(f"{target.name}: P/D | one pool" for target in _promises(found))
        + " |"
    )
    yield "|---" * (5 + 2 * len(_promises(found))) + "|"
    for workload in dict.fromkeys(case.workload for case in found):
        own = [case.target for case in found if case.workload == workload]
        for rate in dict.fromkeys(s.rate for s in seen[APART][0] if s.workload == workload):
            sides = [
                [s for turn in seen[name] for s in turn if (s.workload, s.rate) == (workload, rate)]
                for name in (APART, POOL)
            ]
            cells = [workload, f"{rate:g}", str(sum(len(s.ttft_ms) for s in sides[0]))]
            cells += [_gap(side) for side in sides]
            cells += [_share(side, target) for target in own for side in sides]
            yield f"| {' | '.join(cells)} |"
    yield ""


def picture(found: Sequence[Case], seen: Mapping[str, Sequence[Sequence[Seen]]]) -> str:
    """Draw attainment against the rate for each promise, and against the SLO scale for the first, by workload."""
    workloads = list(dict.fromkeys(case.workload for case in found))
    panels = [_against_rate(case, seen) for name in _promises(found) for case in found if case.target.name == name.name]
    panels += [_against_scale(next(c for c in found if c.workload == workload), seen) for workload in workloads]
    return plotted(panels, columns=len(workloads))


def _promises(found: Sequence[Case]) -> list[Target]:
    return [case.target for case in found if case.workload == found[0].workload]


def _against_rate(case: Case, seen: Mapping[str, Sequence[Sequence[Seen]]]) -> Panel:
    curves = []
    for name in (APART, POOL):
        parts = [s for turn in seen[name] for s in turn if s.workload == case.workload]
        points = [
            (rate, _attained([s for s in parts if s.rate == rate], case.target))
            for rate in sorted({s.rate for s in parts})
        ]
        curves.append(Curve(name, points, is_ours=name == APART))
    title = f"{case.workload}: {_promise(case.target)} ms"
    return Panel(title, tuple(curves), "requests/s: % within", (100 * case.target.attainment,))


def _against_scale(case: Case, seen: Mapping[str, Sequence[Sequence[Seen]]]) -> Panel:
    curves = []
    for name in (APART, POOL):
        parts = [s for turn in seen[name] for s in turn if s.workload == case.workload]
        rate = sorted({s.rate for s in parts})[_SCALED_AT]
        own = [s for s in parts if s.rate == rate]
        curves.append(
            Curve(name, [(scale, _attained(own, case.target, scale)) for scale in SCALES], is_ours=name == APART)
        )
    title = f"{case.workload} at {rate:g}/s"
    return Panel(title, tuple(curves), f"times {_promise(case.target)} ms: % within", (100 * case.target.attainment,))


def _attained(parts: Sequence[Seen], target: Target, scale: float = 1.0) -> float:
    return 100.0 * float(np.concatenate([s.kept(target.ttft_s, target.tpot_s, scale) for s in parts]).mean())


def _share(parts: Sequence[Seen], target: Target) -> str:
    found = statistics.share(np.concatenate([s.kept(target.ttft_s, target.tpot_s) for s in parts])).interval
    return f"{100 * found.mid:.0f} ({100 * found.low:.0f}..{100 * found.high:.0f})"


def _gap(parts: Sequence[Seen]) -> str:
    gaps = np.concatenate([np.array(s.longest_gap_ms) for s in parts])
    gaps = gaps[~np.isnan(gaps)]
    return f"{np.quantile(gaps, 0.99):.0f}" if len(gaps) else "-"


def _promise(target: Target) -> str:
    return f"{1e3 * target.ttft_s:.0f}/{1e3 * target.tpot_s:.0f}"


def _times(predicted: Predicted) -> str:
    """Write the planner's verdict, and how many times as much its best P/D keeps as its best pool."""
    ratio = predicted.plan.ratio
    return predicted.family + ("" if ratio is None else f", {ratio.mid:.2g} ({ratio.low:.2g}..{ratio.high:.2g}) times")


def _rate(found: Interval, top: float | None = None) -> str:
    if not found.mid:
        return "none" if not found.high else f"none (up to {found.high:.2g})"
    least = "at least " if top is not None and found.mid >= top else ""
    return f"{least}{found.mid:.2g} ({found.low:.2g}..{found.high:.2g})"
