"""What happened beside what the simulator makes of it: attainment, times and cost by class, and how far it is off.

Owns the comparison and its wording. Must not simulate, read files or print.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sim.outcome import End, Outcome
from sim.past import Case
from sim.recording import Recording
from sim.workload import Floats

MAX_WINDOWS: Final = 10
LEAST_IN_WINDOW: Final = 30  # requests: of fewer a share is known to no better than 9 points
_NAN: Final = float("nan")
_COLUMNS: Final = 96


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One class in one telling; None: nothing ended that can be judged."""

    name: str
    requests: int  # that can be judged
    attainment: float | None
    refused: float | None  # share
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    tpot_p50_s: float | None


@dataclass(frozen=True, slots=True)
class Telling:
    """What happened, or what a simulation says would have."""

    classes: tuple[ClassResult, ...]
    attainment: float | None  # of all
    goodput: float  # requests/s that kept their SLO
    devices: float  # in the mean
    device_hours: float


@dataclass(frozen=True, slots=True)
class ReplayError:
    """How far the simulation of the past was off what happened, over windows of it."""

    windows: int
    requests: int  # in each, at least
    mean: float  # of the absolute difference of attainment
    largest: float
    bias: float  # simulated less real


@dataclass(frozen=True, slots=True, eq=False)
class _Column:
    """Arrays of one telling, an entry for each request."""

    kept: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    ttft_s: Floats  # nan: not known
    tpot_s: Floats


def happened(recording: Recording, case: Case) -> Telling:
    """Tell what happened."""
    return _telling(_recorded(recording), _judged(recording), case)


def simulated(recording: Recording, case: Case, outcome: Outcome) -> Telling:
    """Tell what a simulation of the recorded requests says; those that nobody can judge do not count here either."""
    return _telling(_simulated(case, outcome), _judged(recording), case)


def replay_error(recording: Recording, case: Case, outcome: Outcome) -> ReplayError | None:
    """Compare window by window; None: there are too few requests for two of them."""
    judged = np.flatnonzero(_judged(recording))
    windows = min(MAX_WINDOWS, len(judged) // LEAST_IN_WINDOW)
    if windows < 2:
        return None
    real, simulated_kept = _recorded(recording).kept, _simulated(case, outcome).kept
    parts = np.array_split(judged, windows)
    off = np.array([float(simulated_kept[part].mean()) - float(real[part].mean()) for part in parts])
    smallest = min(len(part) for part in parts)
    return ReplayError(windows, smallest, float(np.abs(off).mean()), float(np.abs(off).max()), float(off.mean()))


def _judged(recording: Recording) -> NDArray[np.bool_]:
    return np.array([request.kept is not None for request in recording.requests])


def _recorded(recording: Recording) -> _Column:
    requests = recording.requests
    return _Column(
        np.array([request.kept is True for request in requests]),
        np.array([request.outcome == "rejected" for request in requests]),
        np.array([_NAN if request.ttft_s is None else request.ttft_s for request in requests]),
        np.array([_NAN if request.tpot_s is None else request.tpot_s for request in requests]),
    )


def _simulated(case: Case, outcome: Outcome) -> _Column:
    done = outcome.end == End.DONE
    return _Column(
        outcome.met(case.targets),
        outcome.end == End.REFUSED,
        np.where(done, outcome.ttft_s, _NAN),
        np.where(done, outcome.tpot_s, _NAN),
    )


def _telling(column: _Column, judged: NDArray[np.bool_], case: Case) -> Telling:
    of_class = case.workload.classes()
    hours = case.device_hours
    return Telling(
        classes=tuple(
            _class_result(target.name, column, judged & (of_class == i)) for i, target in enumerate(case.targets)
        ),
        attainment=_mean(column.kept[judged]),
        goodput=float(column.kept[judged].sum()) / max(case.span_s, 1e-9),
        devices=hours * 3600 / max(case.span_s, 1e-9),
        device_hours=hours,
    )


def _class_result(name: str, column: _Column, chosen: NDArray[np.bool_]) -> ClassResult:
    return ClassResult(
        name,
        int(chosen.sum()),
        _mean(column.kept[chosen]),
        _mean(column.refused[chosen]),
        _quantile(column.ttft_s[chosen], 0.5),
        _quantile(column.ttft_s[chosen], 0.95),
        _quantile(column.tpot_s[chosen], 0.5),
    )


def _mean(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


def _quantile(values: Floats, share: float) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.quantile(known, share)) if len(known) else None


def as_fields(telling: Telling) -> dict[str, Any]:
    """Give a telling as plain values, as JSON has them."""
    return {**asdict(telling), "classes": [asdict(result) for result in telling.classes]}


def lines_of(
    columns: Sequence[tuple[str, Telling]], error: ReplayError | None, *, price_per_hour: float | None
) -> Iterator[str]:
    """Say it for people, a column for each telling."""
    width = max(16, *(len(name) + 2 for name, _ in columns))
    yield " " * 22 + "".join(name.rjust(width) for name, _ in columns)

    def row(name: str, cells: Sequence[str]) -> str:
        return name.ljust(22) + "".join(cell.rjust(width) for cell in cells)

    for i, result in enumerate(columns[0][1].classes):
        if not result.requests:
            continue
        of_class = [telling.classes[i] for _, telling in columns]
        yield f"{result.name}, {result.requests:,} requests"
        yield row("  attainment", [_percent(r.attainment) for r in of_class])
        yield row("  refused", [_percent(r.refused) for r in of_class])
        yield row("  TTFT P50", [_ms(r.ttft_p50_s) for r in of_class])
        yield row("  TTFT P95", [_ms(r.ttft_p95_s) for r in of_class])
        yield row("  TPOT P50", [_ms(r.tpot_p50_s) for r in of_class])
    tellings = [telling for _, telling in columns]
    yield "all"
    yield row("  attainment", [_percent(t.attainment) for t in tellings])
    yield row("  goodput", [f"{t.goodput:.3g}/s" for t in tellings])
    yield row("  devices", [f"{t.devices:.3g}" for t in tellings])
    yield row("  device hours/1M kept", [_per_million(t, 1.0) for t in tellings])
    if price_per_hour is not None:
        yield row("  price/1M kept", [_per_million(t, price_per_hour) for t in tellings])
    yield ""
    yield from textwrap.wrap(error_line(error), _COLUMNS)


def error_line(error: ReplayError | None) -> str:
    """Say how far the simulation is to be trusted."""
    if error is None:
        return (
            f"replay error: not known; it takes {2 * LEAST_IN_WINDOW} requests that can be judged, so take the figures "
            "as a guess"
        )
    direction = "too good" if error.bias > 0 else "too bad"
    return (
        f"replay error: {100 * error.mean:.1f} points of attainment in the mean over {error.windows} windows of the "
        f"past ({error.requests} requests and more each), {100 * error.largest:.1f} at most; "
        f"{100 * abs(error.bias):.1f} points {direction} over all. Differences smaller than that say nothing."
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _per_million(telling: Telling, price: float) -> str:
    span_s = telling.device_hours * 3600 / telling.devices if telling.devices else 0.0
    kept = telling.goodput * span_s
    return f"{price * telling.device_hours / kept * 1e6:,.0f}" if kept else "-"
