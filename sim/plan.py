"""A question to the planner and its answer.

Owns the values that pass between the search (sim.search), the report (sim.report) and whoever starts what was planned.
Rates are requests per second of the whole cluster unless a name says per GPU.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, Protocol

from core.latency.profile import EngineProfile
from sim.cluster import ClusterSpec, LinkSpec, Mode
from sim.outcome import Target
from sim.workload import Workload

CLEAR: Final = 1.05  # times as much goodput: less is no reason to choose


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Equal nodes of equal devices."""

    profile: EngineProfile
    nodes: int
    devices_per_node: int
    price_per_hour: float = 1.0  # of one device
    inner_link: LinkSpec = field(default_factory=LinkSpec)  # between devices of a node
    outer_link: LinkSpec = field(default_factory=LinkSpec)  # between nodes

    @property
    def devices(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.devices_per_node


@dataclass(frozen=True, slots=True)
class PlanQuestion:
    """What is to be planned."""

    groups: tuple[DeviceGroup, ...]
    targets: tuple[Target, ...]  # one for each class
    workload: Workload  # lengths, burstiness and mix; its rate is that of the trace
    rate: float | None = None  # what must be carried; None: as much as possible
    modes: tuple[Mode, ...] = (Mode.ONE_POOL_CHUNKED, Mode.DISAGGREGATED, Mode.HYBRID)  # vLLM always chunks
    equal_parallelism: bool = True  # both pools of one tensor and pipeline size, as `baton up` needs
    max_num_seqs: int = 256
    chunk_tokens: tuple[int, ...] = (512, 1024, 2048, 8192)  # max_num_batched_tokens to try
    seeds: tuple[int, ...] = (0, 1, 2)
    fixed: ClusterSpec | None = None  # what-if: judge this one only


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 90 % interval: fit residuals x trace bootstrap x seeds."""

    low: float
    mid: float
    high: float


def is_clear(ratio: Interval) -> bool:
    """Say whether a ratio is one to choose by: on one side of 1 in nearly all draws, and far enough from it."""
    return (ratio.low > 1 and ratio.mid >= CLEAR) or (ratio.high < 1 and ratio.mid <= 1 / CLEAR)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One placement that was simulated to the end."""

    cluster: ClusterSpec
    group: tuple[int, ...]  # index into the question's groups: of prefill and decode, or of the one pool
    goodput: Interval  # highest rate with every class at its attainment
    attainment: tuple[Interval, ...]  # by class, at the rate asked for, or at the goodput
    price_per_hour: float
    nodes_spanned: bool = False  # the KV goes between nodes

    @property
    def goodput_per_gpu(self) -> float:
        """Requests per second for each device."""
        return self.goodput.mid / self.cluster.gpus


class Verdict(enum.StrEnum):
    """What the plan says of disaggregation here."""

    DISAGGREGATE = "P/D pays"
    ONE_POOL = "one pool is better here"
    UNCLEAR = "no clear difference"
    INFEASIBLE = "cannot be met"


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why the promise cannot be kept, and the nearest that can."""

    binding: str  # "interactive.tpot_ms", or "rate"
    nearest: tuple[Target, ...]  # the least loosened promise that the best placement keeps at the rate asked for
    feasible_rate: float | None  # the highest rate at which the promise itself is kept; None: at none
    reason: str


@dataclass(frozen=True, slots=True)
class RatePoint:
    """One point of the picture: attainment by class at a rate."""

    rate: float
    attainment: tuple[float, ...]
    goodput: float  # requests per second that met both targets


@dataclass(frozen=True, slots=True)
class SearchStats:
    """What the search did."""

    considered: int
    pruned: int  # by the analytic bound
    simulated: int
    simulated_requests: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer."""

    verdict: Verdict
    best: Candidate | None  # None: not even one worker fits the devices
    best_one_pool: Candidate | None
    best_disaggregated: Candidate | None  # hybrids among them
    front: tuple[Candidate, ...]  # no other is as good in goodput, attainment and price; by goodput
    curve: tuple[RatePoint, ...]  # of the best
    shortfall: Shortfall | None  # set with Verdict.INFEASIBLE
    gears_differ: float | None  # attainment of the best: search gear less the router's own policies; None: not checked
    stats: SearchStats
    notes: tuple[str, ...] = ()
    ratio: Interval | None = None  # goodput of P/D over that of one pool, draw by draw; None: one of them keeps nothing
    own_policy: tuple[float, float] | None = None  # what the router's own policy keeps of P/D and of one pool, if asked


class Progress(Protocol):
    """Hears how a search goes on."""

    def __call__(self, *, done: int, total: int, best: Candidate | None) -> None:
        """Take the number of candidates done, of all, and the best so far."""
        ...
