"""What the controller tells of a cluster: its order, its events and its state.

Owns values only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.placement import WorkerPlacement
from cluster.topology import Gpu
from core.config.models import BatonConfig
from core.control.actions import DeciderFactory, PoolSizes
from core.types import ControlDecision, Fingerprint, Role


@dataclass(frozen=True, slots=True)
class StartOrder:
    """Everything the controller needs to bring a cluster up."""

    config: BatonConfig
    placements: tuple[WorkerPlacement, ...]
    engine_kind: str  # "vllm" | "simulated"
    engine_args: tuple[str, ...]  # for a simulated engine
    base: str  # folder that relative model paths begin in
    run_dir: str  # logs and specs, on every node
    node_id: str  # of the controller and the router
    address: str  # IP address of that node
    token: str = field(repr=False)  # shared secret of the cluster
    env_vars: Mapping[str, str]  # for actors, when Ray is not our own
    by_convention: bool = True  # pools go to the nodes marked for them, see cluster.placement
    decider: DeciderFactory | None = None  # of sizes and roles; None: nobody decides


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """Something that happened; numbers grow by one from 1."""

    number: int
    elapsed_s: float  # since the controller began
    subject: str  # worker id, "router" or "placement"
    what: str
    is_failure: bool = False
    took_s: float | None = None  # of something that was asked for and is done


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One worker or the router."""

    name: str
    role: Role | None  # None: the router
    node: str  # host name, once known, and IP address
    state: str  # of core.control.reconcile.Phase; of the router "starting", "ready" or "ended"
    stage: str = ""  # latest stage of its start that is done
    epoch: int = 0
    pid: int | None = None
    address: str = ""  # host:port of its service
    kv_address: str = ""  # host:port where its engine receives KV
    fingerprint: str = ""  # short digest; equal ones can be paired
    identity: Fingerprint | None = None  # what it is the digest of
    cores: tuple[int, ...] = ()  # pinned to; empty: not pinned
    gpus: tuple[Gpu, ...] = ()  # of its node
    log_path: str = ""
    reason: str = ""  # why it ended, or drains
    last_log_lines: tuple[str, ...] = ()  # of one that ended
    num_failures: int = 0  # of late, see `healing` in the configuration
    retry_in_s: float | None = None  # of one that ended; None: it runs
    since_s: float = 0.0  # how long it has been in this state


@dataclass(frozen=True, slots=True)
class DecisionStatus:
    """A change of sizes or roles: who wanted it, why, and what came of it."""

    number: int
    elapsed_s: float  # since the controller began
    at_s: float  # since the epoch
    by: str  # "operator" or "decider"
    wanted: PoolSizes
    flips: tuple[str, ...]
    reason: str
    figures: Mapping[str, float]
    outcome: str = ""  # empty: it is under way
    took_s: float | None = None  # until it was carried out; None: it is not
    verdict: str = ""  # of the decider itself, by what was attained before and after; empty: none yet

    @property
    def text(self) -> str:
        """Say in one line what is to be."""
        sizes = f"{self.wanted.prefill} prefill, {self.wanted.decode} decode"
        return "; ".join((sizes, *self.flips))

    def told(self) -> ControlDecision:
        """Say it as routers are told."""
        outcome = "; ".join(filter(None, (self.outcome, self.verdict)))
        return ControlDecision(self.at_s, f"{self.by}: {self.text}", self.reason, outcome)


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster as its controller sees it."""

    model: str
    membership_version: int
    membership_address: str
    members: tuple[MemberStatus, ...]  # workers ordered by pool and index, then the router
    events: tuple[ClusterEvent, ...]  # the latest, oldest first
    wanted: PoolSizes | None = None  # None: not told
    waits: str = ""  # why what is wanted is not done; empty: it is, or is on its way
    decisions: tuple[DecisionStatus, ...] = ()  # of the decider and of people, oldest first
    scaling: str = ""  # whether sizes follow the traffic, and what a decision waits for; empty: not told
