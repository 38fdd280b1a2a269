"""The controller: one Ray actor that brings a cluster up, keeps it what it is to be, and takes it down.

Owns the order of start and stop, and what may be asked of a running cluster. Must not carry requests or tokens. When
its process dies Ray makes it anew: workers and router run on meanwhile, and it takes them up from its record on disk
and from their hosts.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from cluster import ray_actors
from cluster.cluster_events import EventLog
from cluster.cluster_status import ClusterEvent, ClusterStatus, StartOrder
from cluster.controller_record import EVENTS_RECORDED, ControllerRecord, MemberRecord
from cluster.host_events import HostFacts
from cluster.host_watch import HostWatch
from cluster.members import Member, Members
from cluster.membership import MembershipServer
from cluster.observing import PoolsNow, TrafficObserver
from cluster.placement import assign_cores
from cluster.pool_keeper import PoolKeeper
from cluster.preflight import check_scaling
from cluster.rollout import Rollout, plan_rollout
from cluster.router_keeper import RouterKeeper
from cluster.scaling import OPERATOR, Scaling
from cluster.worker_keeper import WorkerKeeper
from cluster.worker_progress import WorkerProgress
from core.config.models import BatonConfig
from core.config.specs import component_tls, served_model_name
from core.control.actions import Decision, Observation, PoolSizes, RoleFlip
from core.control.reconcile import Phase
from core.errors import StartFailed
from core.types import Membership, Role

EVENTS_SHOWN: Final = 20
DECISIONS_TOLD: Final = 20  # to routers
SAVE_S: Final = 0.05  # changes within this time are written together
REJOIN_S: Final = 20.0  # a controller that is made anew has found its cluster by then
ROUTER_GRACE_S: Final = 30.0  # for requests that run while the router gets new settings


class Controller:
    """Brings one cluster up, keeps it, takes it down."""

    def __init__(self, order: StartOrder) -> None:
        self._order = order
        self._begin_s = time.monotonic()
        self._log = EventLog(lambda: time.monotonic() - self._begin_s)
        self._server = self._make_server(0)
        self._membership_address = ""
        self._members = Members(publish=lambda membership: self._server.publish(membership))
        self._keeper = WorkerKeeper(order, self._members, self._log, self._changed)
        self._hosts = HostWatch(self._members, self._keeper.lost)
        self._router = RouterKeeper(order, self._log, self._changed)
        self._pools = PoolKeeper(order, self._members, self._keeper, self._log)
        self._scaling = Scaling(self._pools, self._log, make=order.decider, told=self._tell_decisions)
        self._observer = TrafficObserver(order.run_dir)
        self._starting: asyncio.Task[object] | None = None
        self._loops: list[asyncio.Task[None]] = []  # what runs from the end of the start to `stop`
        self._saving: asyncio.TimerHandle | None = None
        self._progress = asyncio.Event()  # replaced at each change: whoever holds it learns of the next one
        self._rejoining: asyncio.Task[None] | None = None
        if ray_actors.was_made_anew():
            self._rejoining = asyncio.get_running_loop().create_task(self._rejoin(), name="rejoin")

    def __repr__(self) -> str:
        """Name the actor in Ray's logs and lists."""
        return ray_actors.CONTROLLER

    # -- start and stop -----------------------------------------------------------------------------------------------

    async def start(self, timeout_s: float) -> str:
        """Bring everything up; return the router's host:port once every worker and the router are ready.

        Raises StartFailed when one fails or `timeout_s` runs out; what was started then stays for `stop`.
        """
        self._starting = asyncio.current_task()
        try:
            async with asyncio.timeout(timeout_s):
                await self._serve_membership()
                self._members.announce()
                facts = await self._place(timeout_s)
                self._router.start(self._router.fields(self._order, self._membership_address))
                self._begin_workers(facts)
                await self._all_ready()
        except TimeoutError:
            raise StartFailed(await self._why_late(timeout_s)) from None
        self._keep()
        return self._router.address

    async def stop(self, grace_s: float) -> None:
        """End the router, then the workers, each within `grace_s`; what does not end in time is killed. Idempotent."""
        self._keeper.stopping = True
        for task in (self._starting, self._rejoining, *self._loops):
            if task is not None:
                task.cancel()  # no effect on what is done
        await self._router.stop(grace_s)
        await asyncio.gather(*(self._keeper.stop(member, grace_s) for member in self._members))
        await self._keeper.places.withdraw_request()
        await self._server.stop()

    def _make_server(self, port: int) -> MembershipServer:
        order = self._order
        tls = component_tls(order.config, Path(order.base))
        return MembershipServer(host=order.address, port=port, token=order.token, tls=tls)

    async def _serve_membership(self) -> None:
        port = await self._server.start()
        self._membership_address = f"{self._order.address}:{port}"

    async def _place(self, timeout_s: float) -> dict[str, HostFacts]:
        """Reserve each worker's resources and put its actor there; return the facts of its place by worker id."""
        members = [self._keeper.add(p.worker_id, p.role, p) for p in self._order.placements]
        for member in members:
            await self._keeper.places.place(member, timeout_s)
        facts = {member.worker_id: await self._keeper.places.learn_place(member) for member in members}
        self._log.note("placement", ", ".join(f"{m.worker_id} on {m.shown(0).node}" for m in members))
        slow = sorted({found.host_name for found in facts.values() if found.niceness > 0})
        if slow:
            remedy = "start it with RAY_worker_niceness=0 for full speed"
            self._log.note("placement", f"Ray gives its processes on {', '.join(slow)} a low priority; {remedy}")
        return facts

    def _begin_workers(self, facts: dict[str, HostFacts]) -> None:
        cores_of_node = {p.node_id: facts[p.worker_id].cores for p in self._order.placements}
        pinned = assign_cores(self._order.placements, cores_of_node)
        for member in self._members:
            member.cores = pinned.get(member.worker_id, ())
            self._keeper.begin(member)

    async def _all_ready(self) -> None:
        """Wait for every member; the first that fails fails the start."""
        waited = [self._router.ready, *(m.ready for m in self._members if m.ready is not None)]
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_EXCEPTION)
        for future in done:
            future.result()

    async def _why_late(self, timeout_s: float) -> str:
        """Name the members that are not ready, how far they came and the end of their logs."""
        lines = [f"not ready after {timeout_s:g} s (ray.start_timeout_s):"]
        for member in self._members:
            if member.phase is Phase.READY:
                continue
            stage = f", last stage done: {member.stage}" if member.stage else ""
            lines.append(f"  {member.worker_id} is {member.phase}{stage}")
            if member.host is not None and member.phase is Phase.STARTING:
                lines += [f"    {line}" for line in await member.host.last_log_lines.remote()]
        if self._router.status.state != "ready":
            lines.append(f"  {ray_actors.ROUTER} is {self._router.status.state}")
        return "\n".join(lines)

    def _keep(self) -> None:
        """From now on keep the cluster what it is to be."""
        scaling = self._scaling.run(lambda: self._order.config, self._observe)
        beats = self._hosts.run(lambda: self._order.config.healing.silence_s)
        for name, loop in (("pools", self._pools.run()), ("scaling", scaling), ("hosts", beats)):
            self._loops.append(asyncio.create_task(self._watched(loop, name), name=name))
        self._save()

    async def _observe(self) -> Observation | None:
        """Gather what a decider is told; None when the router does not answer."""
        if self._router.status.state != "ready":
            return None
        now = PoolsNow(
            members=tuple(self._members),
            wanted=self._pools.wishes.sizes,
            limits=await self._pools.limits(),
            start_s=self._keeper.start_s,
            flip_s=self._keeper.flip_s,
            is_changing=self._pools.is_changing,
        )
        return await self._observer.observe(self._router.address, now)

    async def _watched(self, loop: object, name: str) -> None:
        """Run a loop that never ends by itself; an error in it is told, for nobody awaits it."""
        try:
            await loop  # type: ignore[misc]
        except Exception as exc:  # task boundary
            self._log.note(name, f"the controller keeps it no longer: {type(exc).__name__}: {exc}", is_failure=True)
            raise

    # -- made anew ----------------------------------------------------------------------------------------------------

    async def _rejoin(self) -> None:
        """Take up the cluster that an earlier life of this controller left."""
        record = ControllerRecord.read(Path(self._order.run_dir))
        if record is None:
            self._log.note(ray_actors.CONTROLLER, "made anew, before anything was complete", is_failure=True)
            return
        self._begin_s = record.begin_s
        self._log.restore(record.events)
        self._scaling.restore(record.decisions)
        self._use(replace(self._order, config=record.config, base=record.base))
        wishes = self._pools.wishes
        wishes.sizes, wishes.leaving, wishes.renewing = record.sizes, record.leaving, record.renewing
        self._server = self._make_server(record.membership_port)
        self._tell_decisions()
        await self._serve_membership()
        self._members.membership = Membership(record.membership_version)
        self._members.is_held = self._log.is_muted = True
        await asyncio.gather(*(self._rejoin_worker(entry) for entry in record.members))
        self._members.is_held = self._log.is_muted = False
        num_ready = sum(m.phase is Phase.READY for m in self._members)
        found = f"made anew; {num_ready} of {len(record.members)} workers are ready as they were"
        self._log.note(ray_actors.CONTROLLER, found, is_failure=True)
        self._members.announce()
        self._router.rejoin(self._router.fields(self._order, self._membership_address), record.router)
        self._keep()

    async def _rejoin_worker(self, entry: MemberRecord) -> None:
        member = entry.member()
        member.since_s = time.monotonic()
        self._members.table[member.worker_id] = member
        host = await asyncio.to_thread(ray_actors.find, member.host_name) if member.host_name else None
        if host is not None:
            await self._keeper.rejoin(member, host)
        elif member.phase not in (Phase.ENDED, Phase.SET_ASIDE):
            self._keeper.lost(member, "its host is gone")

    async def _is_up(self) -> None:
        """Wait for a controller made anew to have found its cluster. Raises StartFailed."""
        if self._rejoining is not None:
            try:
                async with asyncio.timeout(REJOIN_S):
                    await asyncio.shield(self._rejoining)
            except TimeoutError:
                raise StartFailed(f"the controller was made anew and is not done after {REJOIN_S:g} s") from None

    # -- what is asked ------------------------------------------------------------------------------------------------

    async def events_after(self, number: int, wait_s: float) -> tuple[ClusterEvent, ...]:
        """Return the events after `number`; when there are none, wait for one, but no longer than `wait_s`."""
        return await self._log.after(number, wait_s)

    async def status(self) -> ClusterStatus:
        """Report the cluster as it is."""
        await self._is_up()
        now_s = time.monotonic()
        return ClusterStatus(
            model=served_model_name(self._order.config),
            membership_version=self._members.membership.version,
            membership_address=self._membership_address,
            members=(*(member.shown(now_s) for member in self._members), self._router.status),
            events=self._log.latest(EVENTS_SHOWN),
            wanted=self._pools.wishes.sizes,
            waits=self._pools.waits,
            decisions=self._scaling.decisions,
            scaling=self._scaling.state(self._order.config),
        )

    async def drain(self, worker_id: str, timeout_s: float | None, replaced: bool) -> int:
        """Have a worker finish what runs and end, and be replaced or not; return its epoch. Raises ConfigError."""
        await self._is_up()
        want = self._pools.want_anew if replaced else self._pools.want_gone
        return want(worker_id, timeout_s).epoch

    async def flip(self, worker_id: str, role: Role, within_s: float, why: str) -> int:
        """Have a worker take the other role, once idle or after `within_s`; return its epoch. Raises ConfigError."""
        await self._is_up()
        epoch = self._pools.want_flipped(worker_id, role, within_s, why).epoch
        self._scaling.follow(OPERATOR, Decision(self._pools.wishes.sizes, why, (RoleFlip(worker_id, role),)))
        return epoch

    async def set_desired(self, prefill: int, decode: int, reason: str) -> None:
        """Have the pools be of these sizes. Raises ConfigError."""
        await self._is_up()
        sizes = PoolSizes(prefill, decode)
        await self._pools.check_room(sizes, self._order)
        self._scaling.carry_out(OPERATOR, Decision(sizes, reason))

    async def apply(self, config: BatonConfig, base: str, only_plan: bool) -> Rollout:
        """Have the cluster become what `config` says, or only say what that means; relative paths begin in `base`.

        Pools that are "auto" stay as they are. Raises ConfigError.
        """
        await self._is_up()
        if config.pools == "auto":
            config = config.model_copy(update={"pools": self._order.config.pools})
        order = replace(self._order, config=config, base=base)
        await asyncio.to_thread(check_scaling, config, order.decider)
        fields = self._router.fields(order, self._membership_address)
        differs = self._router.is_told_otherwise(fields)
        had = self._pools.wishes.sizes
        rollout = await asyncio.to_thread(plan_rollout, self._order, order, router_differs=differs, had=had)
        if rollout.sizes is not None:
            await self._pools.check_room(rollout.sizes, order)
        if only_plan:
            return rollout
        for line in rollout.lines:
            self._log.note("apply", line)
        self._use(order)
        if rollout.sizes is not None:
            self._pools.want(rollout.sizes)
        self._pools.wake()
        if rollout.restarts_router:
            await self._router.use(fields, ROUTER_GRACE_S)
        return rollout

    async def progress_of(self, worker_id: str, epoch: int, wait_s: float) -> WorkerProgress:
        """Say how far a worker is that was drained or flipped in `epoch`; wait for news, no longer than `wait_s`."""
        await self._is_up()
        found = self._progress_of(worker_id, epoch)
        if not found.is_done:
            await self._wait(wait_s)
            found = self._progress_of(worker_id, epoch)
        return found

    async def settled(self, wait_s: float) -> str:
        """Say what is still to be done for the pools to be what is wanted; wait for news, no longer than `wait_s`.

        Empty: nothing is.
        """
        await self._is_up()
        if self._pools.is_changing:
            await self._wait(wait_s)
        if not self._pools.is_changing:
            return "" if self._router.status.state == "ready" else f"the router is {self._router.status.state}"
        moving = [f"{m.worker_id} is {m.phase}" for m in self._members if m.phase is not Phase.READY]
        return self._pools.waits or ", ".join(moving) or "workers are compared with what is wanted"

    def _progress_of(self, worker_id: str, epoch: int) -> WorkerProgress:
        member: Member | None = self._members.get(worker_id)
        if member is None:
            return WorkerProgress(True, None, "gone", epoch, "")
        is_new = member.epoch > epoch
        wished = self._pools.wishes
        is_pending = worker_id in wished.leaving or worker_id in wished.renewing
        is_done = member.phase is Phase.READY and not is_pending
        reason = member.reason if not is_done or is_new else ""
        took_s = member.took_s if is_done and not is_new else None
        return WorkerProgress(is_done, member.role, member.phase.value, member.epoch, reason, took_s)

    # -- bookkeeping --------------------------------------------------------------------------------------------------

    def _use(self, order: StartOrder) -> None:
        self._order = order
        self._keeper.use(order)
        self._pools.use(order)
        self._scaling.forget_decider()
        self._observer.forget()

    async def _wait(self, wait_s: float) -> None:
        progress = self._progress
        try:
            async with asyncio.timeout(wait_s):
                await progress.wait()
        except TimeoutError:
            return

    def _changed(self) -> None:
        """Look again what is to be done, and write down what is."""
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()
        self._pools.wake()
        self._scaling.look()
        self._save_soon()

    def _tell_decisions(self) -> None:
        """Tell the routers what was decided about the pools, and write it down."""
        self._server.tell(tuple(decision.told() for decision in reversed(self._scaling.decisions[-DECISIONS_TOLD:])))
        self._save_soon()

    def _save_soon(self) -> None:
        if self._saving is None and self._loops:
            self._saving = asyncio.get_running_loop().call_later(SAVE_S, self._save)

    def _save(self) -> None:
        self._saving = None
        if self._keeper.stopping:
            return
        wishes = self._pools.wishes
        record = ControllerRecord(
            config=self._order.config,
            base=self._order.base,
            begin_s=self._begin_s,
            membership_port=int(self._membership_address.rpartition(":")[2]),
            membership_version=self._members.membership.version,
            sizes=wishes.sizes,
            leaving=wishes.leaving,
            renewing=wishes.renewing,
            router=self._router.place,
            members=tuple(MemberRecord.of(member) for member in self._members),
            events=self._log.latest(EVENTS_RECORDED),
            decisions=self._scaling.decisions,
        )
        try:
            record.write(Path(self._order.run_dir))
        except OSError as exc:
            self._log.note(ray_actors.CONTROLLER, f"its record cannot be written: {exc}", is_failure=True)
