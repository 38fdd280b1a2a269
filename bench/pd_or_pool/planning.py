"""What the planner says of both systems, and of these devices as a whole.

Owns the question. Must not know what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from bench.live_pools import MAX_SEQS, apart, one_pool
from bench.pd_or_pool import cases
from bench.pd_or_pool.verdict import planned
from core.latency.profile import EngineProfile
from sim.cluster import ClusterSpec, LinkSpec
from sim.device_groups import GRPC_BYTES_PER_S, GRPC_LATENCY_S
from sim.outcome import Target
from sim.plan import DeviceGroup, Interval, PlanQuestion
from sim.search import search

_CORES: Final = 2
_REQUESTS: Final = 600
_CHUNKS: Final = (256, 512, 2048)


@dataclass(frozen=True, slots=True)
class Predicted:
    """The planner on one workload under one promise."""

    apart: Interval  # goodput of the two systems that are measured
    pool: Interval
    verdict: str  # between them
    plan: str  # what `baton plan` says of these devices when it may choose pools, chunks and refusal


def predict(profile: EngineProfile, workload: str, target: Target) -> Predicted:
    """Ask for the goodput of both systems as they are, and for the best that the planner finds."""
    link = LinkSpec(GRPC_BYTES_PER_S, GRPC_LATENCY_S)
    question = PlanQuestion(
        groups=(DeviceGroup(profile, 1, _CORES, 1.0, link, link),),
        targets=(target,),
        workload=cases.make(workload, rate=1.0, count=_REQUESTS, seed=0),
        max_num_seqs=MAX_SEQS,
        chunk_tokens=_CHUNKS,
    )
    pair, pool = (_goodput(question, cluster) for cluster in (apart(profile), one_pool(profile, 2)))
    return Predicted(pair, pool, planned(pair, pool), str(search(question).verdict))


def _goodput(question: PlanQuestion, cluster: ClusterSpec) -> Interval:
    best = search(replace(question, fixed=cluster), recheck=None).best
    return best.goodput if best is not None else Interval(0.0, 0.0, 0.0)
