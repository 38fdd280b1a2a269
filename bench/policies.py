"""The router's policies against each other: `python -m bench.policies --data DIR`.

Owns the setting: Llama-3.1-8B on eight H100 in three splits, four kinds of traffic with a promise each, rates from half
of what the cluster can carry to three times that. Every policy meets the same requests on the same simulated cluster
with the same latency profile; only the decisions differ. DIR has the folder traces/ of the public data. Must not know
how any policy decides.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from bench.goodput_plot import Curve, Panel, plotted
from bench.known_models import known_model
from core.latency.device import derive
from core.latency.device_file import load_device
from core.policy.registry import policy_named
from sim.cluster import Admission, ClusterSpec, LinkSpec, Mode, PoolSpec, Routing
from sim.outcome import End, Outcome, Target
from sim.policy_gear import context_of, simulate_with_policy
from sim.search.goodput import WARM_UP_SHARE, resampled
from sim.traces import read_trace
from sim.workload import Workload

OURS: Final = "slo-aware"
BASELINES: Final = ("random", "round-robin", "least-loaded", "power-of-two", "prefix-affinity", "least-predicted-work")
FACTORS: Final = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)  # offered over what the cluster can carry
OVERLOAD: Final = 1.5
SPLITS: Final = ((4, 4), (2, 6), (6, 2))  # prefill and decode workers
MODEL, DEVICE = "Llama-3.1-8B", "h100-sxm"
LINK: Final = LinkSpec(bytes_per_s=50e9, latency_s=1e-4)  # 400 Gbit/s for each GPU
_ROUTING: Final = Routing(admission=Admission.TTFT_AND_TPOT, overflow=True)
_FLOOD: Final = 100.0  # times what a worker computes alone: everything is there at once
_MOST_TIMES: Final = 99.0  # beyond, a ratio says no more than that the other collapsed
_MIDDLE: Final = (0.2, 0.8)  # of the requests, by their ends: between them no worker lacks work


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of requests with its promise."""

    name: str
    file: str
    ttft_s: float
    tpot_s: float

    @property
    def targets(self) -> tuple[Target, ...]:
        """The promise."""
        return (Target(self.name, self.ttft_s, self.tpot_s),)


# Targets about five times what the longest usual prompt takes alone on an H100, and a pace above that of readers.
TRAFFIC: Final = (
    Traffic("Azure conversations", "azure-2023-conv.csv.gz", 0.5, 0.03),
    Traffic("Azure code", "azure-2023-code.csv.gz", 1.0, 0.03),
    Traffic("Mooncake conversations", "mooncake-conversation.jsonl.gz", 10.0, 0.05),
    Traffic("ShareGPT-like", "sharegpt-like-synth-lengths.csv.gz", 0.25, 0.03),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """One kind of traffic on one split, drawn by several seeds."""

    traffic: Traffic
    cluster: ClusterSpec
    workloads: tuple[Workload, ...]
    capacity: float  # requests/s that end when all are offered at once

    @property
    def name(self) -> str:
        """Traffic and split."""
        prefill = self.cluster.prefill.replicas if self.cluster.prefill else 0
        return f"{self.traffic.name}, {prefill}P{self.cluster.decode.replicas}D"


@dataclass(frozen=True, slots=True)
class Measured:
    """One policy at one rate: an entry for each seed."""

    policy: str
    factor: float
    goodput: tuple[float, ...]  # requests/s that kept both targets
    attainment: tuple[float, ...]  # their share of all offered
    refused: tuple[float, ...]  # share


def cluster_of(prefill: int, decode: int) -> ClusterSpec:
    """Make a cluster of one-GPU workers that cache prefixes and may run prompts on decode workers."""
    shape = known_model(MODEL)
    if shape is None:
        raise LookupError(f"{MODEL} is not in bench.known_models")
    worker = derive(load_device(DEVICE), shape, tensor_parallel=1)
    pool = PoolSpec(decode, worker.cost, worker.kv_capacity_tokens)
    link = replace(LINK, kv_bytes_per_token=shape.kv_bytes_per_token(), layers=shape.layers)
    return ClusterSpec(
        Mode.HYBRID, pool, replace(pool, replicas=prefill), link=link, routing=_ROUTING, prefix_cache=True
    )


def workloads_of(folder: Path, traffic: Traffic, *, requests: int, seeds: int) -> tuple[Workload, ...]:
    """Read the beginning of a trace, and resample it for every seed but the first."""
    shape = known_model(MODEL)
    longest = shape.max_model_len if shape else None
    trace = read_trace(folder / "traces" / traffic.file, max_requests=requests, max_total_tokens=longest)
    return resampled(trace.workload, range(seeds))


def run(scene: Scene, workload: Workload, policy: str, rate: float) -> Outcome:
    """Simulate one policy at one rate."""
    targets = scene.traffic.targets
    # What a live router has learnt of outputs after a few hundred (core.policy.learning).
    known = replace(
        context_of(scene.cluster, targets, may_hold=True), mean_output_tokens=float(workload.output_tokens.mean())
    )
    decides = policy_named(policy, known)
    return simulate_with_policy(scene.cluster, workload.at_rate(rate), targets, decides)


def scene_of(traffic: Traffic, cluster: ClusterSpec, workloads: tuple[Workload, ...]) -> Scene:
    """Find what the cluster carries of this traffic when it never lacks work, targets aside."""
    scene = Scene(traffic, cluster, workloads, capacity=0.0)
    outcome = run(scene, workloads[0], "least-loaded", _FLOOD * cluster.num_workers)
    ended_s = np.sort((outcome.arrived_s + outcome.e2e_s)[outcome.end == End.DONE])
    first, last = (int(share * len(ended_s)) for share in _MIDDLE)
    return replace(scene, capacity=float((last - first) / (ended_s[last] - ended_s[first])))


def measure(scene: Scene, policy: str, factor: float) -> Measured:
    """Simulate one policy at `factor` times the capacity, for every seed."""
    rate, targets = factor * scene.capacity, scene.traffic.targets
    shares, refused = [], []
    for workload in scene.workloads:
        skip = int(WARM_UP_SHARE * len(workload))
        outcome = run(scene, workload, policy, rate)
        shares.append(outcome.attainment(targets, skip=skip)[0])
        refused.append(float((outcome.end[skip:] == End.REFUSED).mean()))
    return Measured(policy, factor, tuple(rate * share for share in shares), tuple(shares), tuple(refused))


@dataclass(frozen=True, slots=True)
class Compared:
    """All policies on one scene."""

    scene: Scene
    measured: tuple[Measured, ...]

    def of(self, policy: str) -> tuple[Measured, ...]:
        """Return one policy's figures by rising rate."""
        return tuple(m for m in self.measured if m.policy == policy)

    def at(self, factor: float) -> tuple[Measured, ...]:
        """Return all policies' figures at one rate."""
        return tuple(m for m in self.measured if m.factor == factor)

    def best_baseline(self, factor: float) -> Measured:
        """Return the baseline with the most goodput at one rate, in the mean over the seeds."""
        return max((m for m in self.at(factor) if m.policy != OURS), key=lambda m: (_mean(m.goodput), m.policy))

    def ours(self, factor: float) -> Measured:
        """Return the figures of the policy that predicts at one rate."""
        return next(m for m in self.at(factor) if m.policy == OURS)

    def ratio(self, factor: float) -> tuple[float, float, float]:
        """Return goodput of ours over the best baseline's: the least of a seed, in the mean, the most of a seed.

        Both meet the same requests in each seed. Infinite where the baselines keep nothing and ours does.
        """
        ours, other = self.ours(factor).goodput, self.best_baseline(factor).goodput
        ratios = [_ratio(a, b) for a, b in zip(ours, other, strict=True)]
        return min(ratios), _ratio(_mean(ours), _mean(other)), max(ratios)

    def kept_of_peak(self, policy: str, factor: float = OVERLOAD) -> float:
        """Return goodput at one rate as a share of the policy's own peak."""
        by_factor = {m.factor: _mean(m.goodput) for m in self.of(policy)}
        return by_factor[factor] / peak if (peak := max(by_factor.values())) else 0.0


def compare(scene: Scene, policies: Sequence[str] = (OURS, *BASELINES)) -> Compared:
    """Simulate every policy at every rate."""
    return Compared(scene, tuple(measure(scene, policy, factor) for factor in FACTORS for policy in policies))


def report(compared: Compared) -> Iterator[str]:
    """Write one scene's table in Markdown."""
    scene, gpus = compared.scene, compared.scene.cluster.gpus
    traffic = scene.traffic
    yield (
        f"**{scene.name}**: TTFT {1e3 * traffic.ttft_s:.0f} ms, TPOT {1e3 * traffic.tpot_s:.0f} ms; "
        f"{len(scene.workloads[0]):,} requests x {len(scene.workloads)} draws; carries {scene.capacity:.1f} requests/s"
    )
    yield ""
    yield "| offered | ours, req/s | per GPU | attained | refused | best baseline | req/s | attained | ours / best |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for factor in FACTORS:
        ours, best = compared.ours(factor), compared.best_baseline(factor)
        cells = (
            f"{factor:g}x",
            _spread(ours.goodput),
            f"{_mean(ours.goodput) / gpus:.2f}",
            f"{_mean(ours.attainment):.1%}",
            f"{_mean(ours.refused):.1%}",
            best.policy,
            _spread(best.goodput),
            f"{_mean(best.attainment):.1%}",
            _times(*compared.ratio(factor)),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    kept = ", ".join(
        f"{name} {compared.kept_of_peak(name):.0%}" for name in dict.fromkeys(m.policy for m in compared.measured)
    )
    yield f"Of its own peak at {OVERLOAD:g}x: {kept}."
    yield ""


def panel_of(compared: Compared) -> Panel:
    """Make the picture of one scene: goodput against offered rate, both as shares of the capacity."""
    capacity = compared.scene.capacity
    curves = [
        Curve(name, [(m.factor, _mean(m.goodput) / capacity) for m in compared.of(name)], is_ours=name == OURS)
        for name in dict.fromkeys(m.policy for m in compared.measured)
    ]
    return Panel(f"{compared.scene.name}: 1 is {capacity:.3g} requests/s", tuple(curves))


def _spread(values: Sequence[float]) -> str:
    return f"{_mean(values):.1f} [{min(values):.1f}..{max(values):.1f}]"


def _times(low: float, mid: float, high: float) -> str:
    texts = [f"{x:.2f}" if x < _MOST_TIMES else f">{_MOST_TIMES:.0f}" for x in (mid, low, high)]
    return f"{texts[0]} [{texts[1]}..{texts[2]}]"


def _ratio(ours: float, other: float) -> float:
    return ours / other if other else (float("inf") if ours else 1.0)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def scenes(folder: Path, *, requests: int, seeds: int, only: str) -> Iterator[Scene]:
    """Name the scenes whose name contains `only`, the traffic of a split together."""
    read = cache(lambda traffic: workloads_of(folder, traffic, requests=requests, seeds=seeds))
    for prefill, decode in SPLITS:
        for traffic in TRAFFIC:
            if only.lower() in f"{traffic.name}, {prefill}p{decode}d".lower():
                yield scene_of(traffic, cluster_of(prefill, decode), read(traffic))


def main() -> int:
    """Run from the command line; about a quarter of an hour of one core for everything."""
    parser = argparse.ArgumentParser(prog="python -m bench.policies", description="Compare the router's policies.")
    parser.add_argument("--data", type=Path, required=True, help="folder with traces/")
    parser.add_argument("--requests", type=int, default=6000, help="of each trace (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of each trace (%(default)s)")
    parser.add_argument("--only", default="", help="scenes whose name contains this, such as 'code, 4p4d'")
    parser.add_argument("--plot", type=Path, help="write a picture of all scenes to this SVG file")
    options = parser.parse_args()
    panels = []
    for scene in scenes(options.data, requests=options.requests, seeds=options.seeds, only=options.only):
        compared = compare(scene)
        panels.append(panel_of(compared))
        for line in report(compared):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    if options.plot:
        options.plot.write_text(plotted(panels, columns=len(TRAFFIC)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
