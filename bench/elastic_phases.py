"""Prefill-heavy and decode-heavy traffic in turn on 16 GPUs: flips by the decider, every fixed split, and scale-only.

Owns the traffic and the table. Every system meets the same requests. Scale-only is the same decider that may not flip:
a worker goes and one starts, which takes one to three minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from bench.elastic_scene import ROUTED_BY, TARGETS, Lengths, azure, cluster, joined, reasoning, service
from bench.goodput_plot import Curve, Panel, plotted
from core.control.capacity import capacities
from core.control.decider import Settings, SizingDecider
from core.control.demand import Demand
from core.policy.registry import policy_named
from sim.cluster import ClusterSpec
from sim.control_check import SimulatedSizes
from sim.elastic import Fleet
from sim.elastic_run import ElasticOutcome, run_elastic, run_elastic_with_policy
from sim.policy_gear import context_of
from sim.workload import Workload

GPUS: Final = 16
PHASE_S: Final = 300.0
PHASES: Final = 4
LOADS: Final = (0.8, 0.9)  # of what the best split of each phase is estimated to carry
EVERY_S: Final = 5.0
_FULL_SPLITS: Final = (4, 5, 6, 7, 8, 10)  # about the best: a run takes minutes
_WINDOW_S: Final = 20.0  # of the picture


@dataclass(frozen=True, slots=True)
class Result:
    """One system under one draw."""

    name: str
    goodput: float  # requests/s that kept both targets
    by_phase: tuple[float, float]  # attainment in the prefill-heavy and the decode-heavy phases
    flips: int
    starts: int
    curve: tuple[tuple[float, float], ...]  # goodput by minutes


def carried(spec: ClusterSpec, lengths: Lengths) -> float:
    """Estimate how many requests a second the best split for these lengths carries."""
    prompt, output = lengths.drawn(np.random.default_rng(0), 2000)
    none, weight = np.zeros(len(prompt)), np.full(len(prompt), 1.0 / len(prompt))
    demand = Demand(1.0, prompt.astype(float), none, output.astype(float), none.astype(np.int64), weight)
    capacity = capacities(service(spec), demand, GPUS)
    return max(capacity.rate(prefill, GPUS - prefill) for prefill in range(1, GPUS))


def workload_of(kinds: Sequence[tuple[Lengths, float]], seed: int, phases: int = PHASES) -> Workload:
    """Draw the phases: Poisson arrivals of each kind in turn, at its rate."""
    rng = np.random.default_rng([seed, 0xFA5E])
    parts = []
    for number in range(phases):
        lengths, rate = kinds[number % len(kinds)]
        size = int(rng.poisson(rate * PHASE_S))
        parts.append((PHASE_S * number + np.sort(rng.random(size)) * PHASE_S, *lengths.drawn(rng, size)))
    return joined("phases", parts)


def run(options: argparse.Namespace) -> Iterator[str]:
    """Simulate all systems at each load, and write the tables in Markdown."""
    folder: Path = options.data
    spec = cluster()
    kinds = [(lengths, carried(spec, lengths)) for lengths in (azure(folder, "code"), reasoning())]
    panels = []
    for load in LOADS:
        at_load = [(lengths, load * most) for lengths, most in kinds]
        rates = " and ".join(f"{rate:.0f}" for _, rate in at_load)
        yield f"**{load:g} of what the best splits carry**: {rates} requests/s, {GPUS} GPUs, TTFT 1 s, TPOT 20 ms"
        phases = 2 if options.full else PHASES
        results = [_results(spec, workload_of(at_load, seed, phases), seed, options) for seed in range(options.seeds)]
        yield from _table(results)
        best = _best_fixed(results[0])
        shown = [best, *(r for r in results[0] if not r.name.startswith("fixed"))]
        curves = tuple(Curve(_named(r), r.curve, is_ours=r.name == "flips") for r in shown)
        panels.append(Panel(f"load {load:g}: requests/s in time", curves, x_title="minutes"))
    if options.plot:
        options.plot.write_text(plotted(panels, columns=len(LOADS)), encoding="utf-8")


def _table(results: Sequence[Sequence[Result]]) -> Iterator[str]:
    yield ""
    yield "| | goodput, req/s | prefill-heavy | decode-heavy | flips | starts |"
    yield "|---|---|---|---|---|---|"
    for same in zip(*results, strict=True):
        yield _row(same)
    yield ""
    for name in ("flips", "scale-only"):
        ratios = [next(r for r in some if r.name == name).goodput / _best_fixed(some).goodput for some in results]
        yield f"{name} over the best fixed split of each draw: {_spread(ratios, 2)}"
    yield ""


def _best_fixed(results: Sequence[Result]) -> Result:
    return max((r for r in results if r.name.startswith("fixed")), key=lambda r: r.goodput)


def _named(result: Result) -> str:
    return "best fixed split" if result.name.startswith("fixed") else result.name


def _results(spec: ClusterSpec, workload: Workload, seed: int, options: argparse.Namespace) -> list[Result]:
    found = []
    for prefill in _FULL_SPLITS if options.full else range(1, GPUS):
        fleet = Fleet(spec, GPUS, prefill, GPUS - prefill)
        found.append(_result(f"fixed {prefill}P{GPUS - prefill}D", _simulated(fleet, workload, None, seed, options)))
    for name, may_flip in (("flips", True), ("scale-only", False)):
        settings = Settings(most_workers=GPUS, least_workers=GPUS, may_flip=may_flip)
        decider = SizingDecider(service(spec), settings, SimulatedSizes(spec) if options.check else None)
        fleet = Fleet(spec, GPUS, GPUS // 2, GPUS // 2)
        found.append(_result(name, _simulated(fleet, workload, decider, seed, options)))
    return found


def _simulated(
    fleet: Fleet, workload: Workload, decider: SizingDecider | None, seed: int, options: argparse.Namespace
) -> ElasticOutcome:
    if not options.full:
        return run_elastic(fleet, workload, ROUTED_BY, decider, judged_by=TARGETS, every_s=EVERY_S, seed=seed)
    mean = float(workload.output_tokens.mean())
    known = replace(context_of(fleet.cluster, TARGETS, may_hold=True), mean_output_tokens=mean)
    policy = partial(policy_named, "slo-aware")(known)
    return run_elastic_with_policy(fleet, workload, TARGETS, policy, decider, every_s=EVERY_S, seed=seed)


def _result(name: str, found: ElasticOutcome) -> Result:
    outcome = found.outcome
    met, arrived = outcome.met(TARGETS), outcome.arrived_s
    phase = (arrived // PHASE_S).astype(int) % 2
    seconds = PHASE_S * np.ceil(arrived[-1] / PHASE_S)
    counts = np.bincount((arrived[met] // _WINDOW_S).astype(int), minlength=int(seconds // _WINDOW_S))
    curve = tuple(((i + 0.5) * _WINDOW_S / 60, count / _WINDOW_S) for i, count in enumerate(counts.tolist()))
    by_phase = (float(met[phase == 0].mean()), float(met[phase == 1].mean()))
    return Result(name, float(met.sum() / seconds), by_phase, found.flips, found.starts, curve)


def _row(same: Sequence[Result]) -> str:
    first, second = zip(*(r.by_phase for r in same), strict=True)
    flips, starts = (
        ", ".join(str(n) for n in numbers) for numbers in ([r.flips for r in same], [r.starts for r in same])
    )
    goodput = _spread([r.goodput for r in same], 1)
    return f"| {same[0].name} | {goodput} | {np.mean(first):.1%} | {np.mean(second):.1%} | {flips} | {starts} |"


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} [{min(values):.{digits}f}..{max(values):.{digits}f}]"
