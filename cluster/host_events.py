"""What a Ray actor that hosts a process says of it, in order, to the controller.

Owns values only.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.topology import Gpu
from core.types import WorkerHello, WorkerRecord
from core.worker_spec import WorkerSpec


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Where an actor runs."""

    host_name: str
    pid: int  # of the actor
    cores: tuple[int, ...]  # that its processes may use, ascending
    gpus: tuple[Gpu, ...]  # of the node
    niceness: int  # that its processes inherit


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process exists."""

    pid: int


@dataclass(frozen=True, slots=True)
class StageDone:
    """A stage of the process's start is done."""

    stage: str
    elapsed_s: float  # since it was spawned


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The worker takes sessions."""

    record: WorkerRecord
    hello: WorkerHello


@dataclass(frozen=True, slots=True)
class Draining:
    """The worker takes no new legs and ends when none runs."""

    reason: str


@dataclass(frozen=True, slots=True)
class RoleTaken:
    """The worker has changed its role."""

    record: WorkerRecord
    hello: WorkerHello
    num_legs: int  # that still ran when it did


@dataclass(frozen=True, slots=True)
class RouterReady:
    """The router takes requests."""

    address: str  # host:port


@dataclass(frozen=True, slots=True)
class Ended:
    """The process is gone; nothing follows."""

    code: int | None  # exit code, negative for a signal; None when the actor went with it
    reason: str
    last_log_lines: tuple[str, ...] = ()


HostEvent = Spawned | StageDone | WorkerReady | Draining | RoleTaken | RouterReady | Ended


@dataclass(frozen=True, slots=True)
class HostReport:
    """What a host of a worker knows, for a controller that starts anew."""

    facts: HostFacts
    spec: WorkerSpec | None  # of the process it runs, or ran last; None: none was started
    events: tuple[HostEvent, ...] = ()  # of that process so far
