"""How true the derived latency model is to measured servings: `python -m bench.fidelity_silicon SERVINGS.csv[.gz]`.

Owns the command and its report. Fits four engine factors on every other configuration of each group
(bench.silicon_points.split) and reports on the rest; or fits on one file and reports on another with --report. Must
not know how predictions are made (bench.calibrate).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.calibrate import Calibration, Predictor, calibration_of, fit_groups
from bench.silicon_points import Point, read_points, split
from core.errors import ConfigError
from core.latency.device_file import load_device

_TARGET = 0.10  # median error that the planner is meant to stay under
_NORMAL_90 = 1.645  # standard deviations that hold 90 % of a normal distribution


@dataclass(frozen=True, slots=True)
class Judged:
    """One serving, predicted: relative errors, and how far the logarithms lie out of the stated spread."""

    point: Point
    ttft_error: float
    tpot_error: float
    ttft_deviations: float
    tpot_deviations: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Report; return 0 whatever the errors are, 2 for a mistake in what was given."""
    options = _parser().parse_args(arguments)
    try:
        points, unknown = read_points(options.servings)
        fit, report = split(points, by_serving=options.by_serving)
        if options.report:
            fit, (report, unknown) = points, read_points(options.report)
        predictor = Predictor({name: load_device(name) for name in {p.device for p in (*fit, *report)}})
        found = fit_groups(predictor, fit)
    except ConfigError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    judged = [judge(predictor, found, point) for point in report]
    sys.stdout.write(
        f"{len(fit)} distinct servings to fit, {len(report)} to report on, {unknown} rows left out: undetermined\n\n"
    )
    sys.stdout.write("\n".join([*table(judged), "", *factors(found)]) + "\n")
    return 0


def judge(predictor: Predictor, found: Mapping[str, Calibration], point: Point) -> Judged:
    """Predict one serving with its group's calibration and compare."""
    calibration = calibration_of(found, point)
    ttft_s, tpot_s = predictor.predict(point, calibration.engine, calibration.mixed)
    ratios = np.array([ttft_s / point.ttft_s, tpot_s / point.tpot_s])
    logs = np.abs(np.log(ratios))
    return Judged(
        point=point,
        ttft_error=float(abs(ratios[0] - 1)),
        tpot_error=float(abs(ratios[1] - 1)),
        ttft_deviations=float(logs[0] / calibration.ttft_spread),
        tpot_deviations=float(logs[1] / calibration.tpot_spread),
    )


def table(judged: Sequence[Judged]) -> list[str]:
    """Write median errors and the share inside the 90 % interval: overall, and by backend, mode, GPU and group."""
    title = f"{'servings kept out of the fit':44} {'rows':>4}  {'TTFT':>6} {'TPOT':>6} {'both':>6}   in 90 % interval"
    keys: tuple[Callable[[Point], str], ...] = (
        lambda p: "all",
        lambda p: p.backend,
        lambda p: "P/D" if p.separate else "one pool",
        lambda p: p.device,
        lambda p: p.kind,
        lambda p: p.group,
    )
    lines = [title]
    for key in keys:
        lines += [
            _line(name, [j for j in judged if key(j.point) == name]) for name in sorted({key(j.point) for j in judged})
        ]
        lines.append("")
    over = float(np.median([e for j in judged for e in (j.ttft_error, j.tpot_error)]))
    verdict = "kept" if over < _TARGET else "missed"
    return [*lines, f"median error of TTFT and TPOT together {over:.1%}: target {_TARGET:.0%} {verdict}"]


def factors(found: Mapping[str, Calibration]) -> list[str]:
    """Write what was calibrated."""
    lines = ["calibrated: prefill x, decode x, ms a step, ms a request, experts x; spread; steps"]
    for name, c in sorted(found.items()):
        e = c.engine
        lines.append(
            f"{name:44} {e.prefill_scale:5.2f} {e.decode_scale:5.2f} {e.step_s * 1e3:6.2f} {e.request_s * 1e3:7.1f}"
            f" {e.expert_scale:5.2f}"
            f"   TTFT {c.ttft_spread:.2f}, TPOT {c.tpot_spread:.2f}   {'mixed' if c.mixed else 'prefill first'}"
        )
    return lines


def _line(name: str, judged: Sequence[Judged]) -> str:
    def column(of: Callable[[Judged], float]) -> NDArray[np.float64]:
        return np.array([of(j) for j in judged])

    ttft, tpot = column(lambda j: j.ttft_error), column(lambda j: j.tpot_error)
    inside = [float((column(of) <= _NORMAL_90).mean()) for of in (_ttft_deviations, _tpot_deviations)]
    both = float(np.median(np.concatenate([ttft, tpot])))
    medians = f"{float(np.median(ttft)):6.1%} {float(np.median(tpot)):6.1%} {both:6.1%}"
    return f"{name:44} {len(judged):4}  {medians}   TTFT {inside[0]:.0%}, TPOT {inside[1]:.0%}"


def _ttft_deviations(judged: Judged) -> float:
    return judged.ttft_deviations


def _tpot_deviations(judged: Judged) -> float:
    return judged.tpot_deviations


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity_silicon", description=__doc__.splitlines()[0])
    parser.add_argument("servings", type=Path, help="measured servings, the silicon sample of AIConfigurator")
    parser.add_argument("--report", type=Path, help="fit on all of SERVINGS, report on this file")
    parser.add_argument("--by-serving", action="store_true", help="keep out every other serving, not configuration")
    return parser


if __name__ == "__main__":
    sys.exit(main())
