"""The planner against every rung of a ladder of simpler placements: `python -m bench.ladder --data DIR`.

Owns the setting: OPT-13B on 8 A100 with one fit for everybody, no transfer time, a token counted at the end of prefill
(as DistServe does), joint attainment of 90 %, seven workloads and promises. Each rung is measured with the same
simulator; figures are requests per second per GPU. DIR has the folders profiles/ and traces/ of the public data.
Must not know how the planner searches.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.latency.distserve import ServedModel, distserve_profile
from core.latency.profile import EngineProfile
from sim.cluster import Admission, ClusterSpec, Mode, Routing, Rule
from sim.outcome import Outcome, Target
from sim.plan import DeviceGroup, PlanQuestion
from sim.search import search
from sim.search.bounds import Bounds, Demand
from sim.search.estimate import Estimates
from sim.search.goodput import Judge, Scenario
from sim.search.placements import Placement, fits_of, one_pools, size_pairs, split, splits
from sim.search.race import Found, Race
from sim.simulate import simulate
from sim.workload import Ints, Workload

GPUS = 8
OPT_13B = ServedModel("facebook/opt-13b", kv_bytes_per_token=2 * 40 * 5120 * 2, max_model_len=2048)
_CHUNKS = (256, 512, 1024, 2048)
_TENSOR_SIZES = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Column:
    """One workload with one promise; `reference` is the best rung of an independent prototype, requests/s per GPU."""

    workload: str
    ttft_ms: int
    tpot_ms: int
    reference: float

    @property
    def name(self) -> str:
        """The column's heading."""
        return f"{self.workload} {self.ttft_ms}/{self.tpot_ms}"

    @property
    def targets(self) -> tuple[Target, ...]:
        """The promise."""
        return (Target(self.workload, self.ttft_ms / 1e3, self.tpot_ms / 1e3),)


COLUMNS = (
    Column("chat", 200, 100, 2.561),
    Column("chat", 400, 40, 1.898),
    Column("chat", 1000, 30, 1.822),
    Column("conv", 1000, 100, 1.928),
    Column("conv", 1000, 40, 1.289),
    Column("conv", 2000, 30, 1.014),
    Column("code", 1500, 50, 0.381),
)


def token_at_prefill(
    cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0
) -> Outcome:
    """Simulate with the first token counted when prefill ends."""
    return simulate(replace(cluster, first_token_from_prefill=True), workload, targets, seed=seed)


def profile_of(data: Path, engine: str) -> EngineProfile:
    """Read the fit of one engine, without pipeline stages."""
    folder = data / "profiles"
    profile = distserve_profile(
        (folder / "distserve-a100-opt.json").read_text("utf-8"),
        (folder / "distserve-a100-max-num-tokens.csv").read_text("utf-8"),
        OPT_13B,
        engine=engine,
        device="a100-sxm-80gb",
        source="DistServe",
    )
    shapes = (s for s in profile.shapes if s.pipeline_parallel == 1 and s.tensor_parallel in _TENSOR_SIZES)
    return replace(profile, shapes=tuple(shapes))


def workloads_of(data: Path, name: str, *, requests: int = 3000) -> tuple[Workload, ...]:
    """Read a workload: chat is drawn for three seeds from lengths, conv and code are the beginnings of the traces."""
    folder = data / "traces"
    if name != "chat":
        rows = {"conv": 6000, "code": 4000}[name]
        table = _table(folder / f"azure-2023-{name}.csv.gz")[:rows]
        return (Workload(name, table[:, 0], table[:, 1].astype(np.int64), table[:, 2].astype(np.int64)),)
    lengths = chat_lengths(data)
    drawn = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows_of = rng.choice(len(lengths), requests, replace=False)
        arrived_s = np.concatenate(([0.0], np.cumsum(rng.exponential(1.0, requests - 1))))
        drawn.append(Workload(name, arrived_s, lengths[rows_of, 0], lengths[rows_of, 1]))
    return tuple(drawn)


def chat_lengths(data: Path) -> Ints:
    """Read (prompt, output) tokens of chat, in the order of the file."""
    return _table(data / "traces" / "sharegpt-like-synth-lengths.csv.gz").astype(np.int64)


def _table(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    return np.array(rows[1:], np.float64)


class Rungs:
    """Measures the rungs of one column; each is the best of some placements, or one routing of a placement."""

    def __init__(self, column: Column, workloads: tuple[Workload, ...], profile: EngineProfile) -> None:
        self._workloads, self._column = workloads, column
        self._profile = profile
        self.question = question_of(column, workloads[0], profile, GPUS)
        self._judge = Judge(Scenario(workloads, column.targets), token_at_prefill)

    def measured(self, vllm: EngineProfile) -> Iterator[tuple[str, float]]:
        """Yield each rung with its requests/s per GPU."""
        slower = Rungs(self._column, self._workloads, vllm)
        yield "one pool, prefill first, vllm fit", slower.one_pool(Mode.ONE_POOL)
        yield "one pool, prefill first", self.one_pool(Mode.ONE_POOL)
        yield "one pool, chunked", self.one_pool(Mode.ONE_POOL_CHUNKED)
        readme = self._split_of(2, 1, 1, 1)
        yield "DistServe's README unit (tp2 + tp1)", self._per_gpu(self._best([readme]))
        units = [self._split_of(p, d, 1, 1) for p in _TENSOR_SIZES for d in _TENSOR_SIZES]
        found = [self._best([unit]) for unit in units]
        yield "best 1P+1D unit", max(map(self._per_gpu, found))
        least_loaded = self._best(self._splits(Routing(rule=Rule.LEAST_LOADED)))
        if least_loaded is None:
            return
        for rule in (Rule.RANDOM, Rule.ROUND_ROBIN, Rule.LEAST_LOADED, Rule.PREDICTED_WORK):
            name = rule.name.lower().replace("_", " ")
            yield f"best split, {name}", self._routed(least_loaded, Routing(rule=rule))
        yield "  + refusal at TTFT", self._routed(least_loaded, Routing(admission=Admission.TTFT))

    def one_pool(self, mode: Mode) -> float:
        """Return the best one-pool cluster of all devices."""
        asked = replace(self.question, modes=(mode,))
        return self._per_gpu(self._best(list(one_pools(asked, fits_of(asked), GPUS, above=GPUS - 1))))

    def _splits(self, routing: Routing) -> list[Placement]:
        asked = self.question
        return [
            placement.routed(routing)
            for pair in size_pairs(asked, fits_of(asked))
            for x, y in splits(asked, pair, GPUS, above=GPUS - 1)
            for placement in split(asked, Mode.DISAGGREGATED, pair, x, y)
        ]

    def _split_of(self, tp_prefill: int, tp_decode: int, x: int, y: int) -> Placement:
        asked = self.question
        pairs = {
            (p.shape.tensor_parallel, d.shape.tensor_parallel): (p, d) for p, d in size_pairs(asked, fits_of(asked))
        }
        return next(split(asked, Mode.DISAGGREGATED, pairs[tp_prefill, tp_decode], x, y))

    def _best(self, placements: Sequence[Placement]) -> Found | None:
        demand = Demand.of(self.question.workload, self.question.targets)
        race = Race(self.question, self._judge, Bounds(demand), Estimates(demand), lambda best: None)
        return race.confirmed(race.nearby(placements, None), None, thorough=True)

    def _routed(self, found: Found, routing: Routing) -> float:
        return self._per_gpu(self._best([found.placement.routed(routing)]))

    def _per_gpu(self, found: Found | None) -> float:
        return found.rate / found.placement.cluster.gpus if found else 0.0


def question_of(column: Column, workload: Workload, profile: EngineProfile, gpus: int) -> PlanQuestion:
    """Ask for the most that one node carries, over all modes and sizes."""
    return PlanQuestion(
        groups=(DeviceGroup(profile, nodes=1, devices_per_node=gpus),),
        targets=column.targets,
        workload=workload,
        modes=tuple(Mode),
        equal_parallelism=False,
        max_num_seqs=1024,
        chunk_tokens=_CHUNKS,
    )


def report(data: Path, columns: Sequence[Column]) -> Iterator[str]:
    """Measure and yield the lines as they come."""
    profile, vllm = profile_of(data, "distserve"), profile_of(data, "vllm")
    for column in columns:
        workloads = workloads_of(data, column.workload)
        yield f"{column.name} ms: requests/s per GPU on {GPUS} A100, OPT-13B"
        best = 0.0
        for name, rate in Rungs(column, workloads, profile).measured(vllm):
            best = max(best, rate)
            yield f"  {name:<40}{rate:8.3f}"
        began_s = time.perf_counter()
        asked = question_of(column, workloads[0], profile, GPUS)
        plan = search(asked, workloads=workloads, run=token_at_prefill, recheck=None)
        ours = plan.best.goodput_per_gpu if plan.best else 0.0
        yield f"  {'planned':<40}{ours:8.3f}   {described(plan.best.cluster) if plan.best else '-'}"
        yield (
            f"  {ours / best:.3f} of the best rung, {ours / column.reference:.3f} of the prototype's "
            f"({column.reference}); {plan.stats.simulated} of {plan.stats.considered} placements simulated, "
            f"{time.perf_counter() - began_s:.1f} s"
        )


def described(cluster: ClusterSpec) -> str:
    """Say in a few words what a cluster is."""
    decode, prefill, routing = cluster.decode, cluster.prefill, cluster.routing
    pools = f"{decode.replicas} x tp{decode.tensor_parallel}"
    if prefill is not None:
        pools = f"P {prefill.replicas} x tp{prefill.tensor_parallel}, D {pools}"
    settings = [f"refusal {routing.admission.name.lower()}", f"order {routing.order.name.lower()}"]
    if cluster.mode is Mode.HYBRID:
        settings.append(f"whole below {routing.whole_below_tokens}, overflow {routing.overflow}")
    if cluster.mode in (Mode.HYBRID, Mode.ONE_POOL_CHUNKED):
        settings.append(f"chunk {decode.max_num_batched_tokens}")
    return f"{cluster.mode.value}: {pools}; {', '.join(settings)}"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.ladder", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with profiles/ and traces/")
    parser.add_argument("--only", default="", help="columns whose name contains this, such as 'chat 400'")
    args = parser.parse_args()
    for line in report(args.data, [column for column in COLUMNS if args.only in column.name]):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
