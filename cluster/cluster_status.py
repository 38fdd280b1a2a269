"""What the controller tells of a cluster: its order, its events and its state.

Owns values only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.placement import WorkerPlacement
from cluster.topology import Gpu
from core.config.models import BatonConfig
from core.types import Fingerprint, Role


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


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """Something that happened; numbers grow by one from 1."""

    number: int
    elapsed_s: float  # since the controller began
    subject: str  # worker id, "router" or "placement"
    what: str
    is_failure: bool = False


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One worker or the router."""

    name: str
    role: Role | None  # None: the router
    node: str  # host name, once known, and IP address
    state: str  # "placing", "starting", "ready", "ended"
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
    reason: str = ""  # why it ended


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster as its controller sees it."""

    model: str
    membership_version: int
    membership_address: str
    members: tuple[MemberStatus, ...]  # workers ordered by pool and index, then the router
    events: tuple[ClusterEvent, ...]  # the latest, oldest first
