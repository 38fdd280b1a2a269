"""`python -m bench.fidelity_real --data DIR`: the simulator against 300 real requests through vLLM, time for time.

DIR holds e2e-vllm019-rtxpro6000-llama-3.1-8b.csv: Llama-3.1-8B, one RTX PRO 6000, vLLM 0.19, at most 128 sequences and
2,048 tokens in a step; from bench/examples of github.com/casys-kaist/LLMServingSim (MIT). The profile is that of
deploy/profiles. Its kernel times were measured apart from this run; only its overhead per step is fitted to the run, on
requests 0 to 149. The report is on requests 150 to 299, and on all for comparison. Measured times start when the engine
core takes a request in, which is up to one step after its arrival.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.profile_sources import read_rows
from core.errors import ConfigError
from core.latency.profile import EngineProfile, read_profile
from core.latency.step import StepCost, Table
from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Target
from sim.simulate import simulate
from sim.workload import Floats, Workload

_RUN = "e2e-vllm019-rtxpro6000-llama-3.1-8b.csv"
_PROFILE = Path(__file__).resolve().parents[1] / "deploy" / "profiles" / "llama-3.1-8b-rtxpro6000.json"
_MAX_NUM_SEQS, _MAX_NUM_BATCHED_TOKENS = 128, 2048
_ANY = (Target("any", float("inf"), float("inf")),)
_FITTED, _REPORTED = slice(0, 150), slice(150, 300)
_BISECTIONS, _OVERHEAD_BOUND_S = 20, 10e-3


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """What was measured or predicted of each request, s."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats


@dataclass(frozen=True, slots=True)
class Figure:
    """One statistic of some requests."""

    name: str
    target: float  # largest relative error aimed at
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """The relative error."""
        return self.predicted / self.measured - 1.0


def read_run(path: Path) -> tuple[Workload, Times]:
    """Read the requests and what was measured of them. Raises ConfigError naming the file."""
    names = ("arrived_s", "prompt_tokens", "output_tokens", "ttft_s", "tpot_s", "e2e_s")
    rows = [[float(row[name]) for name in names] for row in read_rows(path, names)]
    arrived, prompt, output, ttft, tpot, e2e = np.array(sorted(rows)).T.copy()
    workload = Workload(path.stem, arrived - arrived[0], prompt.astype(np.int64), output.astype(np.int64))
    return workload, Times(ttft, tpot, e2e)


def replay(profile: EngineProfile, workload: Workload, *, more_per_step_s: float = 0.0) -> Times:
    """Simulate one engine of the profile with the real run's settings."""
    shape = profile.shape(1)
    pool = PoolSpec(
        replicas=1,
        cost=slower(shape.cost, more_per_step_s),
        kv_capacity_tokens=shape.kv_capacity_tokens,
        max_num_seqs=_MAX_NUM_SEQS,
        max_num_batched_tokens=_MAX_NUM_BATCHED_TOKENS,
    )
    outcome = simulate(ClusterSpec(Mode.ONE_POOL_CHUNKED, pool), workload, _ANY)
    return Times(outcome.ttft_s, outcome.tpot_s, outcome.e2e_s)


def slower(cost: StepCost, seconds: float) -> StepCost:
    """Add a time to every step; a mixed step gets it once."""

    def raised(table: Table) -> Table:
        return Table(table.at, tuple(value + seconds for value in table.value))

    return replace(cost, dense=raised(cost.dense), decode_fixed=raised(cost.decode_fixed))


def figures(predicted: Times, measured: Times, part: slice) -> Iterator[Figure]:
    """Yield the statistics that are aimed at."""
    yield Figure("mean TPOT", 0.03, float(predicted.tpot_s[part].mean()), float(measured.tpot_s[part].mean()))
    yield Figure("mean TTFT", 0.10, float(predicted.ttft_s[part].mean()), float(measured.ttft_s[part].mean()))
    ends = (float(np.quantile(times.e2e_s[part], 0.9)) for times in (predicted, measured))
    yield Figure("P90 end to end", 0.05, *ends)


def missing_per_step(profile: EngineProfile, workload: Workload, measured: Times) -> float:
    """Return the seconds per step that would have to be added for the mean TPOT of the part that is fitted."""
    wanted = float(measured.tpot_s[_FITTED].mean())
    low, high = -_OVERHEAD_BOUND_S, _OVERHEAD_BOUND_S
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if float(replay(profile, workload, more_per_step_s=middle).tpot_s[_FITTED].mean()) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def report(profile: EngineProfile, workload: Workload, measured: Times) -> Iterator[str]:
    """Yield the lines of the report, in Markdown."""
    predicted = replay(profile, workload)
    yield "| requests | figure | predicted s | measured s | error | aim |"
    yield "|---|---|---|---|---|---|"
    for name, part in (("150-299", _REPORTED), ("all", slice(None)), ("0-149, fitted", _FITTED)):
        for figure in figures(predicted, measured, part):
            yield (
                f"| {name} | {figure.name} | {figure.predicted:.4f} | {figure.measured:.4f} | {figure.error:+.1%} "
                f"| {figure.target:.0%} |"
            )
    missing_ms = missing_per_step(profile, workload, measured) * 1e3
    yield f"Requests 0-149 ask for {missing_ms:+.2f} ms per step beyond the profile's."


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; 1 when a figure of the reported part misses its aim."""
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity_real")
    parser.add_argument("--data", type=Path, required=True, help=f"the folder of {_RUN}")
    parser.add_argument("--profile", type=Path, default=_PROFILE, help="the profile to judge")
    options = parser.parse_args(arguments)
    try:
        profile = read_profile(options.profile)
        workload, measured = read_run(options.data / _RUN)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for line in report(profile, workload, measured):
        sys.stdout.write(f"{line}\n")
    judged = figures(replay(profile, workload), measured, _REPORTED)
    return int(any(abs(figure.error) > figure.target for figure in judged))


if __name__ == "__main__":
    raise SystemExit(main())
