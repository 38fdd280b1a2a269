"""Keeps the pools what they are to be: looks what there is, has decided what to do, and has it done.

Owns what is wanted and the loop. What to do is core.control.reconcile's matter, how it is done cluster.worker_keeper's.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Final

from cluster.cluster_events import EventLog
from cluster.cluster_status import StartOrder
from cluster.members import Member, Members
from cluster.worker_keeper import WorkerKeeper
from cluster.worker_specs import configured_sizes
from core.control.actions import PoolSizes, RoleFlip, SizeLimits
from core.control.reconcile import Action, Drain, Goal, Phase, PoolGoal, Replace, Restart, Start, Stop, reconcile
from core.errors import ConfigError
from core.types import Role

LOOK_S: Final = 5.0  # the loop looks at least this often, whether or not something changed
FLIP_WITHIN_S: Final = 10.0  # that what runs has when a decider flips a worker
ROOM_COUNTED: Final = 64  # more workers than that come in several decisions
SUBJECT: Final = "pools"
_MOVING: Final = frozenset({Phase.PLACING, Phase.STARTING, Phase.FLIPPING, Phase.DRAINING})
_DOWN: Final = frozenset({Phase.ENDED, Phase.SET_ASIDE})


@dataclass
class Wishes:
    """What is wanted of the pools; changed by commands and deciders, read by the loop."""

    sizes: PoolSizes
    leaving: dict[str, float | None] = field(default_factory=dict)  # worker id: limit of its drain in seconds
    renewing: dict[str, float | None] = field(default_factory=dict)


class PoolKeeper:
    """The loop; `run` it as a task, `wake` it when something changed."""

    def __init__(self, order: StartOrder, members: Members, keeper: WorkerKeeper, log: EventLog) -> None:
        self._order = order
        self._members = members
        self._keeper = keeper
        self._log = log
        self._woken = asyncio.Event()
        self.wishes = Wishes(configured_sizes(order))
        self.waits = ""  # why something that is wanted is not done
        self.step_s = 0.0  # time that the latest look took

    def use(self, order: StartOrder) -> None:
        """Keep pools by `order` from now on."""
        self._order = order
        self.wake()

    def wake(self) -> None:
        """Look again at once."""
        self._woken.set()

    @property
    def is_changing(self) -> bool:
        """Whether the workers are not what is wanted, and are on the way there."""
        return bool(self.waits) or not self._is_done()

    async def run(self) -> None:
        """Keep the pools until cancelled."""
        while True:
            self._woken.clear()
            began_s = time.monotonic()
            await self._step()
            self.step_s = time.monotonic() - began_s
            try:
                async with asyncio.timeout(self._until_next_s()):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _step(self) -> None:
        room = await self._room()
        states = [member.state() for member in self._members]
        plan = reconcile(self._goal(room), states, time.monotonic())
        for action in plan.actions:
            self._carry_out(action)
        if plan.waits and plan.waits != self.waits:
            self._log.note(SUBJECT, plan.waits)
        self.waits = plan.waits

    async def _room(self) -> dict[Role, int]:
        """Ask for room beside the workers there are, if some are to be replaced."""
        current = {self._keeper.revision(role) for role in Role}
        members = self._members.table.values()
        outdated = {m.role for m in members if m.phase is Phase.READY and m.revision not in current}
        if not outdated or any(m.phase in _MOVING for m in members):
            return {}
        return await self._keeper.places.room_for(tuple(role for role in Role if role in outdated))

    def _goal(self, room: dict[Role, int]) -> Goal:
        wishes, table = self.wishes, self._members.table
        for ids in (wishes.leaving, wishes.renewing):
            for worker_id in [i for i in ids if i not in table or table[i].phase is Phase.DRAINING]:
                del ids[worker_id]
        return Goal(
            prefill=self._pool_goal(Role.PREFILL, room),
            decode=self._pool_goal(Role.DECODE, room),
            leaving=frozenset(wishes.leaving),
            renewing=frozenset(wishes.renewing),
        )

    def _pool_goal(self, role: Role, room: dict[Role, int]) -> PoolGoal:
        count, scaling = self.wishes.sizes.of(role), self._order.config.scaling
        least = scaling.prefill.min if role is Role.PREFILL else scaling.decode.min
        return PoolGoal(count, self._keeper.revision(role), min(least, count), room.get(role, 0))

    def _carry_out(self, action: Action) -> None:
        match action:
            case Start(worker_id, role):
                self._keeper.start(self._keeper.add(worker_id, role))
            case Restart(worker_id):
                self._keeper.start(self._members.table[worker_id])
            case Stop(worker_id):
                self._keeper.remove(self._members.table[worker_id])
            case Drain(worker_id):
                limit_s = self.wishes.leaving.get(worker_id)
                self._keeper.drain(self._members.table[worker_id], leaves=True, timeout_s=limit_s)
            case Replace(worker_id):
                member, limit_s = self._members.table[worker_id], self.wishes.renewing.get(worker_id)
                why = "" if worker_id in self.wishes.renewing else "its settings are not those in force"
                self._keeper.drain(member, leaves=False, timeout_s=limit_s, why=why)

    def _until_next_s(self) -> float:
        now_s = time.monotonic()
        due_s = [m.retry_at_s - now_s for m in self._members.table.values() if m.phase in _DOWN]
        return max(0.01, min([LOOK_S, *due_s]))

    def _is_done(self) -> bool:
        members = list(self._members.table.values())
        current = {self._keeper.revision(role) for role in Role}
        is_counted = all(sum(m.role is r and not m.leaves for m in members) == self.wishes.sizes.of(r) for r in Role)
        return is_counted and all(m.phase is Phase.READY and m.revision in current for m in members)

    # -- what is wanted -----------------------------------------------------------------------------------------------

    def want(self, sizes: PoolSizes) -> None:
        """Have the pools become of these sizes. Raises ConfigError for sizes that cannot serve."""
        if sizes.prefill < 0 or sizes.decode < 1:
            raise ConfigError("decode workers make the output: there must be one at least")
        self.wishes.sizes = sizes
        self.wake()

    def want_gone(self, worker_id: str, timeout_s: float | None) -> Member:
        """Have one worker drain and its pool be one smaller. Raises ConfigError."""
        member = self._known(worker_id)
        if member.leaves:
            return member
        count = self.wishes.sizes.of(member.role)
        if count <= 1:
            remedy = f"`drain {worker_id} --replace` starts it anew, `down` stops everything"
            raise ConfigError(f"{worker_id} is the only {member.role} worker that is wanted: {remedy}")
        if member.phase is Phase.DRAINING:
            member.leaves = True
        less = PoolSizes(self.wishes.sizes.prefill - 1, self.wishes.sizes.decode)
        if member.role is Role.DECODE:
            less = PoolSizes(self.wishes.sizes.prefill, self.wishes.sizes.decode - 1)
        self.wishes.leaving[worker_id] = timeout_s
        self.want(less)
        return member

    def want_anew(self, worker_id: str, timeout_s: float | None) -> Member:
        """Have one worker drain and start again. Raises ConfigError."""
        member = self._known(worker_id)
        if member.phase is not Phase.READY:
            raise ConfigError(f"{worker_id} is {member.phase}; only a worker that is ready can be drained")
        self.wishes.renewing[worker_id] = timeout_s
        self.wake()
        return member

    def want_flipped(self, worker_id: str, role: Role, within_s: float, why: str) -> Member:
        """Have one worker take the other role, and the pools' sizes follow. Raises ConfigError."""
        member = self._known(worker_id)
        if member.role is role:
            raise ConfigError(f"{worker_id} is a {role} worker already")
        if member.phase is not Phase.READY:
            raise ConfigError(f"{worker_id} is {member.phase}; only a worker that is ready can change its role")
        sizes = self.wishes.sizes.flipped(role)
        others = [m for m in self._members.table.values() if m.role is member.role and m.phase is Phase.READY]
        if len(others) < 2:
            raise ConfigError(f"{worker_id} is the only {member.role} worker that is ready: no pair would be left")
        self.want(sizes)
        self._keeper.flip(member, role, within_s, why)
        return member

    def flip(self, change: RoleFlip, why: str) -> None:
        """Have one worker take the other role, as a decider wants it. Raises ConfigError."""
        self.want_flipped(change.worker_id, change.to, FLIP_WITHIN_S, why)

    async def limits(self) -> SizeLimits:
        """Say how far the pools may be resized: by the configuration, and by the room there is or will be made.

        How many nodes Ray's autoscaler could make it tells nobody, so that only pools with a `max` grow onto them.
        """
        scaling = self._order.config.scaling
        count = sum(not m.leaves for m in self._members.table.values())
        places = self._keeper.places
        room = {role: await places.room(role, at_most=ROOM_COUNTED) for role in Role}
        is_made = self._is_room_made()
        most = {}
        for role, limit in ((Role.PREFILL, scaling.prefill.max), (Role.DECODE, scaling.decode.max)):
            fits = count + room[role]
            most[role] = fits if limit is None else limit if is_made else min(fits, limit)
        return SizeLimits(
            PoolSizes(scaling.prefill.min, max(1, scaling.decode.min)),
            PoolSizes(most[Role.PREFILL], most[Role.DECODE]),
            None if is_made else count + max(room.values()),
        )

    def _is_room_made(self) -> bool:
        """Whether Ray's autoscaler may be counted on: it is asked for nodes, and leaves nobody waiting for too long."""
        wait_s = self._order.config.ray.wait_for_nodes_s
        now_s = time.monotonic()
        return wait_s > 0 and not any(
            m.placeless_since_s is not None and now_s - m.placeless_since_s > wait_s
            for m in self._members.table.values()
        )

    async def check_room(self, sizes: PoolSizes, order: StartOrder) -> None:
        """Raise ConfigError when the cluster has no room for pools of these sizes, by `order`, and nobody makes it."""
        if order.config.ray.wait_for_nodes_s:
            return
        for role in Role:
            has = sum(m.role is role and not m.leaves for m in self._members)
            most = has + await self._keeper.places.room(role, at_most=max(0, sizes.of(role) - has), order=order)
            if most < sizes.of(role):
                remedy = f"lower pools.{role}.replicas, or give Ray a node that is large enough"
                raise ConfigError(
                    f"pools.{role}: the cluster has room for {most} of {sizes.of(role)} workers; {remedy}"
                )

    def _known(self, worker_id: str) -> Member:
        member = self._members.get(worker_id)
        if member is None:
            known = ", ".join(m.worker_id for m in self._members)
            raise ConfigError(f"there is no worker {worker_id!r}; there are {known}")
        return member
