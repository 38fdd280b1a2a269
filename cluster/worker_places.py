"""Where the workers of one cluster are: their placement groups, their hosts, the cores they are pinned to.

Owns how a place is found, taken and given back in Ray. Must not know what runs there.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from cluster import ray_actors, ray_runtime
from cluster.cluster_status import StartOrder
from cluster.host import WorkerHost
from cluster.host_events import HostFacts
from cluster.members import Member, Members
from cluster.placement import WorkerPlacement, count_room, place_one, spare_cores, without_claims
from core.errors import ConfigError, StartFailed
from core.types import Role

STOP_MARGIN_S: Final = 5.0  # beyond its grace, for a host to answer
HOST_START_S: Final = 60.0  # a new actor's process imports Ray first


class WorkerPlaces:
    """Finds, takes and gives back places; from one event loop."""

    def __init__(self, order: StartOrder, members: Members) -> None:
        self._order = order
        self._members = members
        self._ending: set[asyncio.Task[None]] = set()  # all and only the removals that run
        self._num_hosts = 0

    def use(self, order: StartOrder) -> None:
        """Find places by `order` from now on."""
        self._order = order

    async def place(self, member: Member, timeout_s: float) -> None:
        """Reserve the member's resources and put its host there. Raises StartFailed or ConfigError."""
        placement = member.placement
        if placement is None:
            placement = member.placement = await self._choose(member)
        self._num_hosts += 1
        member.host_name = f"{member.worker_id}.{time.monotonic_ns()}.{self._num_hosts}"
        group = await ray_actors.reserve(placement, timeout_s, name=member.host_name)
        member.host = ray_actors.create_in_group(
            WorkerHost,
            member.worker_id,
            name=member.host_name,
            placement=placement,
            group=group,
            env_vars=self._order.env_vars,
        )

    async def learn_place(self, member: Member) -> HostFacts:
        """Ask the host where it is. Raises StartFailed when it does not answer."""
        assert member.host is not None
        try:
            async with asyncio.timeout(HOST_START_S):
                facts: HostFacts = await member.host.facts.remote()
        except TimeoutError:
            raise StartFailed(f"{member.worker_id}: its host does not answer within {HOST_START_S:g} s") from None
        except ray_actors.ACTOR_ERRORS as exc:
            raise StartFailed(f"{member.worker_id}: {first_line(exc)}") from exc
        member.facts = facts
        return facts

    async def _choose(self, member: Member) -> WorkerPlacement:
        nodes = await asyncio.to_thread(ray_runtime.alive_nodes)
        others = [m.placement for m in self._members.table.values() if m.placement is not None and m is not member]
        return place_one(
            self._order.config,
            member.role,
            member.worker_id,
            without_claims(nodes, others),
            beside=others,
            by_convention=self._order.by_convention,
        )

    async def room_for(self, roles: tuple[Role, ...]) -> dict[Role, int]:
        """Say which of `roles` the cluster has room for, one more worker of each, all at a time."""
        nodes = await asyncio.to_thread(ray_runtime.alive_nodes)
        claims = [m.placement for m in self._members.table.values() if m.placement is not None]
        found = dict.fromkeys(roles, 0)
        for role in roles:
            try:
                free = without_claims(nodes, claims)
                claims.append(place_one(self._order.config, role, "", free, by_convention=self._order.by_convention))
                found[role] = 1
            except ConfigError:
                continue
        return found

    async def room(self, role: Role, *, at_most: int, order: StartOrder | None = None) -> int:
        """Say how many more workers of `role` there is room for, up to `at_most`; by `order`, if that is given."""
        order = order or self._order
        nodes = await asyncio.to_thread(ray_runtime.alive_nodes)
        claims = [m.placement for m in self._members.table.values() if m.placement is not None]
        free = without_claims(nodes, claims)
        return count_room(order.config, role, free, at_most=at_most, by_convention=order.by_convention)

    async def settle_cores(self, member: Member) -> None:
        """Choose the cores of a member that was placed beside others. Raises StartFailed."""
        facts = await self.learn_place(member)
        placement = member.placement
        assert placement is not None
        beside = [
            m
            for m in self._members.table.values()
            if m is not member and m.placement is not None and m.placement.node_id == placement.node_id
        ]
        taken = [core for m in beside for core in m.cores]
        member.cores = spare_cores(placement, facts.cores, taken, is_alone=not beside)

    def release(self, member: Member) -> None:
        """Give a member's place back; what still runs there is killed."""
        name, member.host, member.host_name = member.host_name, None, ""
        member.placement = member.facts = None
        member.cores = ()
        follower, member.follower = member.follower, None
        if follower is not None and follower is not asyncio.current_task():
            follower.cancel()
        if name:
            task = asyncio.create_task(asyncio.to_thread(ray_actors.remove, name), name=f"remove {name}")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


async def stop_host(host: ray_actors.Handle, grace_s: float) -> str:
    """Have a host end its process within `grace_s`, else kill it; return what went wrong, empty for nothing."""
    try:
        async with asyncio.timeout(grace_s + STOP_MARGIN_S):
            await host.stop.remote(grace_s)
    except TimeoutError:
        return f"its host did not answer within {grace_s + STOP_MARGIN_S:g} s"
    except ray_actors.ACTOR_ERRORS as exc:
        return f"its host is gone: {first_line(exc)}"
    return ""


def first_line(exc: BaseException) -> str:
    """Say what an error of Ray's is about, which goes on for many lines."""
    return (str(exc).splitlines() or [type(exc).__name__])[0]
