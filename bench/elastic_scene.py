"""The fleet and the traffic that the benchmarks of elastic pools share: Llama-3.1-8B on H100, as bench.policies has it.

Owns the setting. Must not know deciders.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from bench.policies import TRAFFIC, cluster_of, workloads_of
from core.control.capacity import ServiceModel, WorkerModel
from core.policy.context import ClassTarget
from sim.cluster import ClusterSpec, PoolSpec
from sim.outcome import Target
from sim.workload import Ints, Workload

TTFT_S: Final = 1.0
TPOT_S: Final = 0.02
TARGETS: Final = (Target("all", TTFT_S, TPOT_S),)
# The search gear admits by what it predicts now, and contexts grow: it is told a tenth less than is promised.
ROUTED_BY: Final = (Target("all", 0.9 * TTFT_S, 0.9 * TPOT_S),)
_ALL: Final = 1 << 30
_LENGTHS: Final = 20_000


def cluster() -> ClusterSpec:
    """Describe one worker of either role, link and routing."""
    return replace(cluster_of(1, 1), prefix_cache=False)  # no request of these traces shares a prefix


def service(spec: ClusterSpec) -> ServiceModel:
    """Tell deciders of the same workers and promise."""
    assert spec.prefill is not None
    targets = tuple(ClassTarget(target.ttft_s, target.tpot_s, attainment=target.attainment) for target in TARGETS)
    return ServiceModel(_model(spec.prefill), _model(spec.decode), tuple(t.name for t in TARGETS), targets)


def _model(pool: PoolSpec) -> WorkerModel:
    return WorkerModel(pool.cost, pool.kv_capacity_tokens, pool.max_num_seqs, pool.max_num_batched_tokens)


class Lengths:
    """Joint lengths to draw requests from."""

    def __init__(self, prompt: Ints, output: Ints) -> None:
        self.prompt, self.output = prompt, output

    def drawn(self, rng: np.random.Generator, size: int) -> tuple[Ints, Ints]:
        """Draw so many requests."""
        chosen = rng.integers(0, len(self.prompt), size)
        return self.prompt[chosen], self.output[chosen]


def azure(folder: Path, kind: str) -> Lengths:
    """Read the lengths of an Azure trace, "code" or "conversations"."""
    traffic = next(t for t in TRAFFIC if t.name == f"Azure {kind}")
    workload = workloads_of(folder, traffic, requests=_ALL, seeds=1)[0]
    return Lengths(workload.prompt_tokens, workload.output_tokens)


def reasoning() -> Lengths:
    """Make short questions with long answers: lognormal, medians 200 and 700 tokens; no public trace has such."""
    rng = np.random.default_rng(1)
    prompt = np.rint(rng.lognormal(np.log(200), 0.7, _LENGTHS)).clip(8, 4000)
    output = np.rint(rng.lognormal(np.log(700), 0.6, _LENGTHS)).clip(16, 4000)
    return Lengths(prompt.astype(np.int64), output.astype(np.int64))


def joined(name: str, parts: list[tuple[np.ndarray[tuple[int, ...], np.dtype[np.float64]], Ints, Ints]]) -> Workload:
    """Put parts of arrival times, prompts and outputs together, by arrival."""
    arrived, prompt, output = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(arrived, kind="stable")
    return Workload(name, arrived[order], prompt[order], output[order])
