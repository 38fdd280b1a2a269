"""What the planner says of both systems, and of these devices as a whole.

Owns the question. Must not know what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.live_pools import MAX_SEQS, apart, one_pool
from bench.pd_or_pool import cases
from bench.pd_or_pool.verdict import APART, POOL, UNCLEAR
from core.latency.profile import EngineProfile
from sim.cluster import LinkSpec
from sim.device_groups import GRPC_BYTES_PER_S, GRPC_LATENCY_S
from sim.outcome import Target
from sim.plan import DeviceGroup, Interval, Plan, PlanQuestion, Verdict, is_clear
from sim.search import search
from sim.search.beside import Beside, beside
from sim.search.referee import own_policy_rate

_CORES: Final = 2
_REQUESTS: Final = 600
_CHUNKS: Final = (256, 512, 2048)
_FAMILIES: Final = {Verdict.DISAGGREGATE: APART, Verdict.ONE_POOL: POOL, Verdict.UNCLEAR: UNCLEAR}


@dataclass(frozen=True, slots=True)
class Predicted:
    """The planner on one workload under one promise."""

    apart: Interval  # goodput of the two systems that are measured
    pool: Interval
    verdict: str  # between them
    plan: Plan  # what `baton plan` says of these devices when it may choose pools, chunks and refusal

    @property
    def family(self) -> str:
        """The verdict of `baton plan`, in the words of the measured one."""
        return _FAMILIES.get(self.plan.verdict, str(self.plan.verdict))


def predict(profile: EngineProfile, workload: str, target: Target) -> Predicted:
    """Ask for the goodput of both systems as they are, and for the best that `baton plan` finds."""
    link = LinkSpec(GRPC_BYTES_PER_S, GRPC_LATENCY_S)
    question = PlanQuestion(
        groups=(DeviceGroup(profile, 1, _CORES, 1.0, link, link),),
        targets=(target,),
        workload=cases.make(workload, rate=1.0, count=_REQUESTS, seed=0),
        max_num_seqs=MAX_SEQS,
        chunk_tokens=_CHUNKS,
    )
    served = beside(question, apart(profile), one_pool(profile, 2))
    plan = search(question, referee=own_policy_rate)  # as sim.plan_command asks
    return Predicted(served.first, served.second, _verdict(served), plan)


def _verdict(served: Beside) -> str:
    if served.ratio is None:
        kept = [name for name, found in ((APART, served.first), (POOL, served.second)) if found.mid]
        return kept[0] if len(kept) == 1 else UNCLEAR
    if not is_clear(served.ratio):
        return UNCLEAR
    return APART if served.ratio.mid > 1 else POOL
