"""Where the workers of one cluster are: their placement groups, their hosts, the cores they are pinned to.

Owns how a place is found, taken and given back in Ray. Must not know what runs there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Final

from cluster import node_request, ray_actors, ray_runtime
from cluster.cluster_status import StartOrder
from cluster.host import WorkerHost
from cluster.host_events import HostFacts
from cluster.members import Member, Members
from cluster.node_probe import answering
from cluster.placement import (
    Node,
    WorkerPlacement,
    count_room,
    needed_bundle,
    place_one,
    spare_cores,
    without_claims,
)
from core.errors import ConfigError, StartFailed
from core.types import Role

STOP_MARGIN_S: Final = 5.0  # beyond its grace, for a host to answer
WITHDRAW_S: Final = 5.0
HOST_START_S: Final = 60.0  # a new actor's process imports Ray first


class WorkerPlaces:
    """Finds, takes and gives back places; from one event loop."""

    def __init__(self, order: StartOrder, members: Members) -> None:
        self._order = order
        self._members = members
        self._ending: set[asyncio.Task[None]] = set()  # all and only the removals that run
        self._num_hosts = 0
        self._requested: tuple[Mapping[str, float], ...] = ()  # of Ray's autoscaler, here

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
        nodes = await living_nodes()
        others = [m.placement for m in self._members.table.values() if m.placement is not None and m is not member]
        return place_one(
            self._order.config,
            member.role,
            member.worker_id,
            without_claims(nodes, others),
            beside=others,
            by_convention=self._order.by_convention,
        )

    async def ask_for_nodes(self) -> str:
        """Have Ray's autoscaler make room for all workers, if the configuration says so; return what was asked for.

        Empty: nothing was.
        """
        if not self._order.config.ray.wait_for_nodes_s:
            return ""
        nodes = await living_nodes()
        bundles = tuple(self._bundle(member, nodes) for member in self._members if not member.leaves)
        if bundles == self._requested:
            return ""
        self._requested = bundles
        await asyncio.to_thread(node_request.request_nodes, bundles)
        return node_request.describe_request(bundles)

    def _bundle(self, member: Member, nodes: Sequence[Node]) -> Mapping[str, float]:
        if member.placement is not None:
            return member.placement.bundle
        return needed_bundle(self._order.config, member.role, nodes, by_convention=self._order.by_convention)

    async def withdraw_request(self) -> None:
        """Ask for nodes no more, if any were asked for here or by the start; a Ray that is ending needs no telling."""
        if self._order.config.ray.wait_for_nodes_s:
            with contextlib.suppress(TimeoutError, RuntimeError):
                async with asyncio.timeout(WITHDRAW_S):
                    await asyncio.to_thread(node_request.withdraw_request)

    async def room_for(self, roles: tuple[Role, ...]) -> dict[Role, int]:
        """Say which of `roles` the cluster has room for, one more worker of each, all at a time."""
        nodes = await living_nodes()
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
        nodes = await living_nodes()
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


async def living_nodes() -> tuple[Node, ...]:
    """List the nodes that are alive to Ray and answer."""
    return await answering(await asyncio.to_thread(ray_runtime.alive_nodes))


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
