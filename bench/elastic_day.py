"""A day of Azure traffic on pools that follow it: GPU-hours and attainment beside pools of one size, and beside target
tracking.

Owns the day and the table. The lengths and the shares of chat and code are those of the traces; the public part of them
is 40 minutes long, so the shape over the day is made: a night at a quarter of the afternoon, two humps, code in working
hours, and bursts of a few minutes. Starts take 60 to 180 s.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.elastic_scene import ROUTED_BY, TARGETS, Lengths, azure, cluster, joined, service
from bench.elastic_tracking import TargetTracking
from bench.goodput_plot import Curve, Panel, plotted
from core.control.actions import Decider, PoolSizes
from core.control.decider import Settings, SizingDecider
from core.types import Role
from sim.cluster import ClusterSpec
from sim.control_check import SimulatedSizes
from sim.elastic import Fleet
from sim.elastic_run import ElasticOutcome, Epoch, run_elastic
from sim.workload import Floats, Workload

DAY_S: Final = 86_400.0
MOST: Final = 16  # GPUs
CHAT_RATE, CODE_RATE = 40.0, 20.0  # requests/s in the busiest hour
EVERY_S: Final = 15.0
_BURSTS: Final = 24
_BACK_S: Final = (60.0, 300.0)  # a size that is taken back within so long was no good; the first is the cool-down
# Prompt tokens for each prefill worker and sequences for each decode worker that target tracking keeps to.
_TRACKED: Final = ((2000.0, 80.0), (4000.0, 120.0), (8000.0, 160.0))


@dataclass(frozen=True, slots=True)
class Result:
    """One system under one draw of the day."""

    name: str
    attainment: float
    worst_hour: float
    gpu_hours: float
    resized: int
    reversals: tuple[int, ...]  # within each of _BACK_S
    epochs: tuple[Epoch, ...]


def rates(at_s: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return requests/s of chat and of code at these times of the day."""
    hour = at_s / 3600
    humps = np.exp(-(((hour - 10.5) / 2.5) ** 2)) * 0.8 + np.exp(-(((hour - 15.5) / 3.5) ** 2))
    chat = 0.25 + 0.75 * humps / humps.max()
    work = 0.05 + 0.95 / ((1 + np.exp(-(hour - 8.5) * 3)) * (1 + np.exp((hour - 18) * 2)))
    burst = np.ones_like(at_s)
    for begin in rng.random(_BURSTS) * DAY_S:  # half as much again, for three minutes
        burst += 0.5 * np.exp(-(((at_s - begin) / 90) ** 2))
    return CHAT_RATE * chat * burst, CODE_RATE * work * burst


def workload_of(chat: Lengths, code: Lengths, seed: int) -> Workload:
    """Draw the arrivals of a day: Poisson in each second."""
    rng = np.random.default_rng([seed, 0xDA7])
    seconds: Floats = np.arange(int(DAY_S)).astype(np.float64)
    parts = []
    for lengths, rate in zip((chat, code), rates(seconds, rng), strict=True):
        counts = rng.poisson(rate)
        arrived = np.repeat(seconds, counts) + rng.random(int(counts.sum()))
        parts.append((arrived, *lengths.drawn(rng, len(arrived))))
    return joined("day", parts)


def run(options: argparse.Namespace) -> Iterator[str]:
    """Simulate all systems, and write the table in Markdown."""
    chat, code, spec = azure(options.data, "conversations"), azure(options.data, "code"), cluster()
    results = []
    for seed in range(options.seeds):
        workload = workload_of(chat, code, seed)
        if not seed:
            yield f"{len(workload):,} requests a day, up to {MOST} GPUs, TTFT 1 s, TPOT 20 ms, starts 60..180 s"
        results.append(list(_results(spec, workload, seed, check=options.check)))
    yield "| | attainment | worst hour | GPU-hours | sizes changed | taken back within 1 / 5 min |"
    yield "|---|---|---|---|---|---|"
    for same in zip(*results, strict=True):
        yield _row(same)
    if options.plot:
        shown = [r for r in results[0] if r.epochs]
        curves = tuple(
            Curve(r.name, [(e.at_s / 3600, float(e.devices)) for e in r.epochs[::8]], is_ours=r.name == "decider")
            for r in shown
        )
        options.plot.write_text(plotted([Panel("GPUs held", curves, x_title="hour")], columns=1), encoding="utf-8")


def _results(spec: ClusterSpec, workload: Workload, seed: int, *, check: bool) -> Iterator[Result]:
    decider = SizingDecider(service(spec), Settings(most_workers=MOST), SimulatedSizes(spec) if check else None)
    yield _simulated("decider", spec, workload, seed, PoolSizes(2, 2), decider)
    for owed, running in _TRACKED:
        name = f"target tracking, {owed:.0f} tokens, {running:.0f} sequences"
        yield _simulated(name, spec, workload, seed, PoolSizes(2, 2), TargetTracking(owed, running))
    for sizes in (PoolSizes(3, 1), PoolSizes(3, 2), PoolSizes(4, 2)):
        yield _simulated(f"fixed {sizes.prefill}P{sizes.decode}D", spec, workload, seed, sizes, None)


def _simulated(
    name: str, spec: ClusterSpec, workload: Workload, seed: int, sizes: PoolSizes, decider: Decider | None
) -> Result:
    fleet = Fleet(spec, MOST, sizes.prefill, sizes.decode)
    found = run_elastic(fleet, workload, ROUTED_BY, decider, judged_by=TARGETS, every_s=EVERY_S, seed=seed)
    met = found.outcome.met(TARGETS)
    hour = (found.outcome.arrived_s // 3600).astype(int)
    worst = min(float(met[hour == h].mean()) for h in np.unique(hour))
    resized, reversals = _changes(found)
    hours = found.device_s / 3600
    return Result(name, float(met.mean()), worst, hours, resized, reversals, found.epochs)


def _changes(found: ElasticOutcome) -> tuple[int, tuple[int, ...]]:
    """Count the decisions that changed a pool, and the changes that took back the one before within `_BACK_S`."""
    latest: dict[Role, tuple[float, bool]] = {}  # when a pool last changed, and whether it grew
    before = PoolSizes(2, 2)
    resized, back = 0, [0] * len(_BACK_S)
    for epoch in found.epochs:
        if epoch.decision is None:
            continue
        resized += 1
        for role in Role:
            old, new = before.of(role), epoch.decision.sizes.of(role)
            if old == new:
                continue
            at_s, grew = latest.get(role, (-DAY_S, new > old))
            if grew != (new > old):
                back = [n + (epoch.at_s - at_s < within_s) for n, within_s in zip(back, _BACK_S, strict=True)]
            latest[role] = (epoch.at_s, new > old)
        before = epoch.decision.sizes
    return resized, tuple(back)


def _row(same: Sequence[Result]) -> str:
    hours = [r.gpu_hours for r in same]
    resized = ", ".join(str(r.resized) for r in same)
    back = ", ".join(" / ".join(str(n) for n in r.reversals) for r in same)
    return (
        f"| {same[0].name} | {np.mean([r.attainment for r in same]):.2%} | {min(r.worst_hour for r in same):.1%} | "
        f"{np.mean(hours):.0f} [{min(hours):.0f}..{max(hours):.0f}] | {resized} | {back} |"
    )
