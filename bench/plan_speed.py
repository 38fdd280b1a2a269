"""How fast plans are made: `python -m bench.plan_speed --data DIR`.

Owns the settings that are timed: the simulator alone, DistServe's README search, every mode and split of 8 GPUs, and
clusters up to 1,024 GPUs. Times are of this process; compiling is timed apart, for it happens once for a version of
the simulator. DIR has the folders profiles/ and traces/ of the public data. Must not know how the search works inside.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bench.distserve_parity import CONFIGS, SEARCH_REQUESTS, Ours
from bench.ladder import COLUMNS, profile_of, question_of, workloads_of
from core.latency.profile import EngineProfile
from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.plan import DeviceGroup, Plan, PlanQuestion
from sim.search import search
from sim.simulate import simulate
from sim.workload import Workload

_CHAT = COLUMNS[0]
_SIZES = ((8, 3_000), (64, 10_000), (256, 30_000), (1024, 100_000))  # GPUs, requests


def timed(action: Callable[[], object]) -> float:
    """Return the seconds of the processor that `action` takes."""
    began_s = time.process_time()
    action()
    return time.process_time() - began_s


def at_length(workload: Workload, requests: int) -> Workload:
    """Draw a longer workload of the same kind."""
    size = len(workload)
    if requests <= size:
        return workload
    copies = -(-requests // size)
    rng = np.random.default_rng(0)
    drawn = [workload.bootstrap(rng, 50) for _ in range(copies)]
    gaps = [np.diff(w.arrived_s, prepend=-1 / w.rate) for w in drawn]
    arrived_s = np.cumsum(np.concatenate(gaps))
    return Workload(
        workload.name,
        arrived_s - arrived_s[0],
        np.concatenate([w.prompt_tokens for w in drawn]),
        np.concatenate([w.output_tokens for w in drawn]),
    )


def clusters(profile: EngineProfile) -> Iterator[tuple[str, ClusterSpec]]:
    """Name the clusters on which the simulator alone is timed: 8 GPUs each, near what they carry."""
    one, two = profile.shape(1), profile.shape(2)

    def pool(count: int, tensor: int) -> PoolSpec:
        shape = two if tensor == 2 else one
        return PoolSpec(count, shape.cost, shape.kv_capacity_tokens, tensor)

    yield "one pool, chunked, 8 x tp1", ClusterSpec(Mode.ONE_POOL_CHUNKED, pool(8, 1))
    yield "P/D, 2 x tp2 : 4 x tp1", ClusterSpec(Mode.DISAGGREGATED, pool(4, 1), prefill=pool(2, 2))
    yield "hybrid, 2 x tp2 : 4 x tp1", ClusterSpec(Mode.HYBRID, pool(4, 1), prefill=pool(2, 2))


def simulator_lines(profile: EngineProfile, workload: Workload) -> Iterator[str]:
    """Time the simulator alone."""
    for name, cluster in clusters(profile):
        offered = workload.at_rate(12.0)
        seconds = timed(partial(simulate, cluster, offered, _CHAT.targets))
        yield f"  {name:<34}{len(offered) / seconds:>12,.0f} requests/s of one core"


def plan_line(question: PlanQuestion) -> str:
    """Time one plan."""
    plans: list[Plan] = []
    seconds = timed(lambda: plans.append(search(question)))
    stats, best = plans[0].stats, plans[0].best
    goodput = f"{best.goodput.mid:,.1f}/s on {best.cluster.gpus}" if best else "none"
    gpus, requests = question.groups[0].devices, len(question.workload)
    return (
        f"  {gpus:>6} {requests:>9,} {seconds:>9.1f} s {stats.considered:>8} {stats.pruned:>8} {stats.simulated:>8} "
        f"{stats.simulated_requests / 1e6:>9.1f} M   {goodput}"
    )


def report(data: Path, largest: int) -> Iterator[str]:
    """Time everything, and yield the lines as they come."""
    profile = profile_of(data, "distserve")
    workload = workloads_of(data, "chat")[0]
    few = workload.part(0, 50)
    compiled_s = sum(timed(partial(simulate, cluster, few, _CHAT.targets)) for _, cluster in clusters(profile))
    yield f"compiling, or reading what was compiled: {compiled_s:.1f} s"
    yield f"the simulator, {len(workload):,} requests:"
    yield from simulator_lines(profile, workload)
    ours, sampled = Ours(data), workload.part(0, SEARCH_REQUESTS)
    unit = replace(sampled, arrived_s=sampled.arrived_s * sampled.rate)
    ours.searched(unit)
    seconds = timed(lambda: ours.searched(unit))
    yield f"DistServe's README search, {len(CONFIGS)} configurations, {SEARCH_REQUESTS} requests: {seconds:.3f} s"
    yield f"plans ({_CHAT.name} ms, all modes and splits, 3 seeds), seconds of one core:"
    yield "    GPUs  requests      time   placed   pruned    tried  simulated   goodput"
    for gpus, requests in _SIZES:
        if gpus > largest:
            return
        question = question_of(_CHAT, at_length(workload, requests), profile, gpus)
        nodes = DeviceGroup(profile, nodes=max(1, gpus // 8), devices_per_node=8)
        yield plan_line(replace(question, groups=(nodes,)))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.plan_speed", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with profiles/ and traces/")
    parser.add_argument("--largest", type=int, default=1024, help="leave out clusters of more GPUs")
    args = parser.parse_args()
    for line in report(args.data, args.largest):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
