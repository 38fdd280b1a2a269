"""The workers of one cluster as its controller has them, and which of them are announced.

Owns the table of members, what is shown of each, and the versions of the membership. Must not act on a worker.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field, replace

from cluster.cluster_status import MemberStatus
from cluster.host_events import HostFacts
from cluster.placement import WorkerPlacement
from cluster.ray_actors import Handle
from core.control.reconcile import MemberState, Phase
from core.types import Fingerprint, Membership, Role, WorkerHello, WorkerRecord


@dataclass(slots=True, eq=False)
class Member:
    """One worker, over all its lives; changed by cluster.worker_keeper only."""

    worker_id: str
    role: Role
    phase: Phase
    log_path: str
    revision: str = ""  # of the settings it was started with
    epoch: int = 0  # of its process; 0: none was started yet
    placement: WorkerPlacement | None = None  # None: it is to be found
    host: Handle | None = None  # None: it has no place
    host_name: str = ""  # of that actor in Ray
    facts: HostFacts | None = None  # of that place
    cores: tuple[int, ...] = ()
    pid: int | None = None
    stage: str = ""  # latest stage of its start that is done
    record: WorkerRecord | None = None  # None: it was not ready in this life
    hello: WorkerHello | None = None
    failures_s: tuple[float, ...] = ()  # that still count, see core.control.restarts
    retry_at_s: float = 0.0  # of one that is down
    leaves: bool = False  # it drains, and is gone then
    reason: str = ""  # why it ended last
    last_log_lines: tuple[str, ...] = ()
    wished_s: float = 0.0  # when the start it is in, or had, was wanted
    placeless_since_s: float | None = None  # since when it has found no place; None: it has one, or did not look yet
    since_s: float = 0.0  # when it came into its phase
    role_since_s: float = 0.0
    took_s: float | None = None  # its latest start or change of role, since it was wanted
    job: asyncio.Task[None] | None = None  # what is being done to it
    follower: asyncio.Task[None] | None = None  # of its process's events
    ready: asyncio.Future[None] | None = None  # of the start it is in

    def state(self) -> MemberState:
        """Say what decisions need."""
        return MemberState(
            worker_id=self.worker_id,
            role=self.role,
            phase=self.phase,
            revision=self.revision,
            pairing=short_digest(self.hello.fingerprint) if self.hello else "",
            retry_at_s=self.retry_at_s,
            leaves=self.leaves,
        )

    def shown(self, now_s: float) -> MemberStatus:
        """Say what people see."""
        facts, placement, hello = self.facts, self.placement, self.hello
        address = placement.address if placement else ""
        is_down = self.phase in (Phase.ENDED, Phase.SET_ASIDE)
        return MemberStatus(
            name=self.worker_id,
            role=self.role,
            node=f"{facts.host_name} ({address})" if facts else address or "no place",
            state=self.phase.value,
            stage=self.stage,
            epoch=self.epoch,
            pid=self.pid,
            address=self.record.address if self.record else "",
            kv_address=hello.kv_address if hello else "",
            fingerprint=short_digest(hello.fingerprint) if hello else "",
            identity=hello.fingerprint if hello else None,
            cores=self.cores,
            gpus=facts.gpus if facts else (),
            log_path=self.log_path,
            reason=self.reason if is_down or self.phase is Phase.DRAINING else "",
            last_log_lines=self.last_log_lines if is_down else (),
            num_failures=len(self.failures_s),
            retry_in_s=max(0.0, self.retry_at_s - now_s) if is_down else None,
            since_s=now_s - self.since_s,
        )


@dataclass
class Members:
    """All and only the workers that the controller keeps, by id."""

    publish: Callable[[Membership], None]
    table: dict[str, Member] = field(default_factory=dict)
    membership: Membership = field(default_factory=lambda: Membership(version=0))
    is_held: bool = False  # nothing is published: who the members are is being found out

    def __iter__(self) -> Iterator[Member]:
        """Go through the members: by role and number, which is the order they are shown in."""
        return iter(sorted(self.table.values(), key=_order))

    def get(self, worker_id: str) -> Member | None:
        """Look one up."""
        return self.table.get(worker_id)

    def announce(self) -> None:
        """Publish a new version if other workers take requests than in the one before."""
        if self.is_held:
            return
        records = [m.record for m in self.table.values() if m.phase is Phase.READY and m.record is not None]
        workers = tuple(sorted(records, key=lambda record: record.worker_id))
        if workers != self.membership.workers or not self.membership.version:
            self.membership = Membership(self.membership.version + 1, workers)
            self.publish(self.membership)


def short_digest(fingerprint: Fingerprint) -> str:
    """Shorten a fingerprint for people: workers of equal digests can be paired."""
    return hashlib.sha256(repr(astuple(fingerprint)).encode()).hexdigest()[:8]


def placed_record(record: WorkerRecord, member: Member) -> WorkerRecord:
    """Say in a worker's record where it is, as people are shown it."""
    if member.facts is None or member.placement is None:
        return record
    return replace(record, node=f"{member.facts.host_name} ({member.placement.address})")


def _order(member: Member) -> tuple[bool, str, int, str]:
    pool, _, number = member.worker_id.rpartition("-")
    return (member.role is Role.DECODE, pool, int(number) if number.isdecimal() else 0, member.worker_id)
