"""Carries out what is decided of one worker: place, start, drain, change the role, end; and hears what becomes of it.

Owns every change of a member and the bounds of each step. Must not decide what is wanted: `changed` tells whoever does.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from cluster import ray_actors
from cluster.cluster_events import EventLog
from cluster.cluster_status import StartOrder
from cluster.host_events import Draining, Ended, HostEvent, HostReport, RoleTaken, Spawned, StageDone, WorkerReady
from cluster.members import Member, Members, placed_record
from cluster.placement import WorkerPlacement
from cluster.worker_places import WorkerPlaces, first_line, stop_host
from cluster.worker_specs import revision, worker_spec
from core.config.models import BatonConfig
from core.control.reconcile import Phase
from core.control.restarts import RestartPolicy, failures_since, next_restart
from core.errors import ConfigError, StartFailed
from core.types import Role
from core.worker_spec import WorkerSpec

ASK_S: Final = 10.0  # a host answers at once
FLIP_AGAIN_S: Final = 10.0  # for a flip whose limit is forgotten
RESERVE_S: Final = 30.0  # for Ray to give what it says is free; its node may be lost meanwhile
NO_ROOM_RETRY_S: Final = 5.0  # until a worker that found no place looks for one again


class WorkerKeeper:
    """Acts on the members of one cluster; from one event loop."""

    def __init__(self, order: StartOrder, members: Members, log: EventLog, changed: Callable[[], None]) -> None:
        """Prepare; `changed` is called after each change of a member."""
        self._members = members
        self._log = log
        self._changed = changed
        self._revisions: dict[Role, str] = {}
        self.places = WorkerPlaces(order, members)
        self.stopping = False  # everything is to end: nothing that ends is a failure
        self.start_s: float | None = None  # measured of the latest start; None: none was complete
        self.flip_s: float | None = None  # the same of flips
        self.use(order)

    def use(self, order: StartOrder) -> None:
        """Start workers by `order` from now on."""
        self._order = order
        self.places.use(order)
        self._revisions = {role: revision(order, role) for role in Role}

    def revision(self, role: Role) -> str:
        """Say the revision that workers of `role` start with."""
        return self._revisions[role]

    def add(self, worker_id: str, role: Role, placement: WorkerPlacement | None = None) -> Member:
        """Keep one more worker, to be started."""
        now_s = time.monotonic()
        log_path = f"{self._order.run_dir}/{worker_id}.log"
        member = Member(worker_id, role, Phase.PLACING, log_path, placement=placement)
        member.since_s = member.role_since_s = member.wished_s = now_s
        member.revision = self._revisions[role]
        self._members.table[worker_id] = member
        return member

    # -- start --------------------------------------------------------------------------------------------------------

    def begin(self, member: Member) -> None:
        """Start the member's process where it was placed, under its next epoch."""
        assert member.placement is not None
        member.epoch += 1
        member.revision = self._revisions[member.role]
        member.record = member.hello = member.pid = None
        member.stage, member.reason, member.last_log_lines = "", "", ()
        self._enter(member, Phase.STARTING)
        placement = replace(member.placement, role=member.role)
        spec = worker_spec(self._order, placement, member.epoch, member.cores, revision=member.revision)
        self.follow(member, spec)

    def start(self, member: Member) -> None:
        """Bring a member up, from wherever it is; returns at once."""
        if member.placeless_since_s is None:  # the wait for a node is part of a start
            member.wished_s = time.monotonic()
        member.revision = self._revisions[member.role]  # what comes in place of others is known by it from now on
        self._enter(member, Phase.PLACING)
        self._do(member, self._bring_up(member))

    async def _bring_up(self, member: Member) -> None:
        timeout_s = self._order.config.ray.start_timeout_s
        try:
            if member.host is None:
                await self.places.place(member, min(timeout_s, RESERVE_S))
                await self.places.settle_cores(member)
                member.placeless_since_s = None
            self.begin(member)
            assert member.ready is not None
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(member.ready)
        except TimeoutError:
            self._log.note(member.worker_id, f"not ready after {timeout_s:g} s (ray.start_timeout_s)", is_failure=True)
            await self._kill_process(member)
        except ConfigError as exc:
            self._find_no_room(member, str(exc))
            if asked := await self.places.ask_for_nodes():
                self._log.note(member.worker_id, f"Ray's autoscaler is asked for {asked}")
        except StartFailed as exc:
            if member.phase is Phase.PLACING:
                self._find_no_room(member, str(exc))

    def _find_no_room(self, member: Member, why: str) -> None:
        """Try again soon: others may free resources, or nodes come."""
        self.places.release(member)
        if member.reason != why:
            self._log.note(member.worker_id, f"has no place yet: {why.splitlines()[0]}", is_failure=True)
        member.reason = why
        now_s = time.monotonic()
        member.retry_at_s = now_s + NO_ROOM_RETRY_S
        if member.placeless_since_s is None:
            member.placeless_since_s = now_s
        self._enter(member, Phase.ENDED)

    # -- end ----------------------------------------------------------------------------------------------------------

    def drain(self, member: Member, *, leaves: bool, timeout_s: float | None = None, why: str = "") -> None:
        """Withdraw a member and have it end when nothing runs on it, within `timeout_s` if that is given."""
        member.leaves = leaves
        member.reason = why
        what = "drains" + (f": {why}" if why else "") + ("" if leaves else "; it is started anew then")
        self._log.note(member.worker_id, what)
        self._enter(member, Phase.DRAINING)  # routers are told first, so that no leg is refused
        self._do(member, self._drain(member, timeout_s))

    async def _drain(self, member: Member, timeout_s: float | None) -> None:
        if member.host is None:
            return
        await self._ask(member, member.host.drain.remote(timeout_s))

    def remove(self, member: Member) -> None:
        """End a member that serves nothing, and forget it."""
        self._cancel_job(member)
        self._members.table.pop(member.worker_id, None)
        self._log.note(member.worker_id, "is not wanted any more")
        self.places.release(member)
        self._changed()

    async def stop(self, member: Member, grace_s: float) -> None:
        """End a member's process within `grace_s`, else kill it."""
        self._cancel_job(member)
        if member.host is None:
            return
        if problem := await stop_host(member.host, grace_s):
            self._log.note(member.worker_id, problem, is_failure=True)

    async def _kill_process(self, member: Member) -> None:
        if member.host is not None:
            await self._ask(member, member.host.kill.remote())

    # -- role ---------------------------------------------------------------------------------------------------------

    def flip(self, member: Member, role: Role, within_s: float, why: str) -> None:
        """Withdraw a member and have it come back in the other role, once idle or after `within_s`."""
        self._log.note(member.worker_id, f"becomes a {role} worker: {why}")
        member.role = role
        member.wished_s = time.monotonic()
        self._enter(member, Phase.FLIPPING)
        self._do(member, self._flip(member, role, within_s))

    async def _flip(self, member: Member, role: Role, within_s: float) -> None:
        assert member.host is not None
        if not await self._ask(member, member.host.take_role.remote(role, within_s)):
            return
        await asyncio.sleep(within_s + ASK_S)
        if member.phase is Phase.FLIPPING:
            self._log.note(member.worker_id, "did not change its role in time; it is ended", is_failure=True)
            await self._kill_process(member)

    # -- what hosts tell ----------------------------------------------------------------------------------------------

    def follow(self, member: Member, spec: WorkerSpec, told: int = 0) -> None:
        """Start the process of `spec`, unless it runs already, and take up what its host tells of it.

        The first `told` events are known.
        """
        member.ready = asyncio.get_running_loop().create_future()
        member.follower = asyncio.create_task(self._take_events(member, spec, told), name=f"follow {member.worker_id}")

    async def rejoin(self, member: Member, host: ray_actors.Handle) -> None:
        """Take up a member from its host, as an earlier life of the controller left it.

        `member` is as that controller recorded it; what it was about to do to it is done again.
        """
        try:
            async with asyncio.timeout(ASK_S):
                report: HostReport = await host.report.remote()
        except (TimeoutError, *ray_actors.ACTOR_ERRORS) as exc:
            self._take_end(member, Ended(None, f"its host is lost: {first_line(exc)}"))
            return
        phase, role = member.phase, member.role
        member.host, member.facts = host, report.facts
        if report.spec is None or report.spec.epoch < member.epoch:
            member.retry_at_s = time.monotonic()
            self._enter(member, Phase.ENDED)
            return
        member.epoch = report.spec.epoch
        member.role = report.spec.role
        self._enter(member, Phase.STARTING)
        self.follow(member, report.spec, len(report.events))
        for event in report.events:
            self._take_event(member, event)
        if member.phase is Phase.READY and phase is Phase.DRAINING:
            self.drain(member, leaves=member.leaves, why=member.reason)
        elif member.phase is Phase.READY and role is not member.role:
            self.flip(member, role, FLIP_AGAIN_S, "it was asked to before")

    def lost(self, member: Member, why: str) -> None:
        """Take up that a member went with its host."""
        self._take_end(member, Ended(None, why))

    async def _take_events(self, member: Member, spec: WorkerSpec, told: int) -> None:
        try:
            async for event in ray_actors.events_of(member.host, spec, member.log_path, told):
                self._take_event(member, event)
        except Exception as exc:  # task boundary: the failure of one host must reach whoever waits for it
            self._take_event(member, Ended(None, f"{type(exc).__name__}: {exc}"))

    def _take_event(self, member: Member, event: HostEvent) -> None:
        match event:
            case Spawned(pid):
                member.pid = pid
            case StageDone(stage, elapsed_s):
                member.stage = stage
                self._log.note(member.worker_id, f"{stage} done, {elapsed_s:.1f} s after its start")
            case WorkerReady(record, hello):
                member.record, member.hello = placed_record(record, member), hello
                self._become_ready(member)
            case RoleTaken(record, hello, num_legs):
                member.record, member.hello = placed_record(record, member), hello
                self._role_taken(member, num_legs)
            case Draining(reason):
                self._drained_by_itself(member, reason)
            case Ended():
                self._take_end(member, event)
        self._changed()

    def _become_ready(self, member: Member) -> None:
        assert member.record is not None
        member.role = member.record.role
        self._enter(member, Phase.READY)
        self.start_s = member.took_s = time.monotonic() - member.wished_s
        self._log.note(member.worker_id, f"ready at {member.record.address}", took_s=member.took_s)
        if member.ready is not None and not member.ready.done():
            member.ready.set_result(None)

    def _role_taken(self, member: Member, num_legs: int) -> None:
        assert member.record is not None
        member.role = member.record.role
        member.role_since_s = time.monotonic()
        self._cancel_job(member)
        took_s = time.monotonic() - member.wished_s
        self.flip_s = member.took_s = took_s
        legs = f"; {num_legs} requests that began before go on" if num_legs else ""
        what = f"is a {member.role} worker, {took_s:.1f} s after it was asked to be{legs}"
        self._log.note(member.worker_id, what, took_s=took_s)
        self._enter(member, Phase.READY)

    def _drained_by_itself(self, member: Member, reason: str) -> None:
        """Take up that a process was told to end by somebody else, such as a machine that is taken away."""
        if member.phase is Phase.DRAINING or self.stopping:
            return
        self._log.note(member.worker_id, f"drains: it {reason}")
        member.reason = f"it {reason}"
        self._enter(member, Phase.DRAINING)

    def _take_end(self, member: Member, end: Ended) -> None:
        was_draining = member.phase is Phase.DRAINING
        member.reason, member.last_log_lines = end.reason, end.last_log_lines
        if not self.stopping and was_draining:
            self._cancel_job(member)
        if end.code is None:
            self.places.release(member)
        self._fail_start(member, end)
        if self.stopping:
            self._log.note(member.worker_id, f"ended: {end.reason}")
            self._enter(member, Phase.ENDED)
        elif was_draining and member.leaves:
            self._log.note(member.worker_id, "is drained and gone")
            self._members.table.pop(member.worker_id, None)
            self.places.release(member)
        elif was_draining and end.code == 0:
            self._log.note(member.worker_id, "is drained")
            member.retry_at_s = time.monotonic()
            self._enter(member, Phase.ENDED)
        else:
            self._count_failure(member, end)

    def _count_failure(self, member: Member, end: Ended) -> None:
        now_s = time.monotonic()
        policy = restart_policy(self._order.config)
        member.failures_s = (*failures_since(policy, member.failures_s, now_s), now_s)
        again = next_restart(policy, member.failures_s, now_s, chance=random.random())
        member.retry_at_s = again.at_s
        phase = Phase.SET_ASIDE if again.is_set_aside else Phase.ENDED
        when = f"started again in {again.at_s - now_s:.1f} s"
        if again.is_set_aside:
            when = f"set aside after {again.num_failures} failures, tried again in {again.at_s - now_s:.0f} s"
        self._log.note(member.worker_id, f"ended: {end.reason}; {when}", is_failure=True)
        self._enter(member, phase)

    def _fail_start(self, member: Member, end: Ended) -> None:
        if member.ready is None or member.ready.done():
            return
        log = "\n".join(("", f"end of {member.log_path}:", *end.last_log_lines))
        failure = StartFailed(f"{member.worker_id}: {end.reason}{log if end.last_log_lines else ''}")
        member.ready.set_exception(failure)
        member.ready.exception()  # retrieved: another's failure may have ended the start before

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def _enter(self, member: Member, phase: Phase) -> None:
        member.phase = phase
        member.since_s = time.monotonic()
        self._members.announce()
        self._changed()

    def _do(self, member: Member, work: object) -> None:
        """Let the member's one job be this."""
        self._cancel_job(member)
        assert asyncio.iscoroutine(work)
        member.job = asyncio.create_task(work, name=f"job of {member.worker_id}")

    def _cancel_job(self, member: Member) -> None:
        job, member.job = member.job, None
        if job is not None and job is not asyncio.current_task():
            job.cancel()

    async def _ask(self, member: Member, answer: object) -> bool:
        """Await an answer of the member's host; False when it is gone or silent: its follower tells of its end."""
        try:
            async with asyncio.timeout(ASK_S):
                await answer  # type: ignore[misc]
        except TimeoutError:
            self._log.note(member.worker_id, f"its host did not answer within {ASK_S:g} s", is_failure=True)
            return False
        except ray_actors.ACTOR_ERRORS:
            return False
        return True


def restart_policy(config: BatonConfig) -> RestartPolicy:
    """Read how patient the controller is to be."""
    healing = config.healing
    return RestartPolicy(
        first_delay_s=healing.first_delay_s,
        max_delay_s=healing.max_delay_s,
        max_failures=healing.max_failures,
        window_s=healing.window_s,
        set_aside_s=healing.set_aside_s,
    )
