"""What can be broken, and how it is mended again.

Owns the list of faults: each breaks one thing of a running cluster and takes it back where it does not pass by itself.
Must not know traffic or verdicts. Only processes of the target are signalled, by the ids that its status gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from bench.chaos.links import SLOW_RATE, CannotCut, cut_connections, slow_links
from bench.chaos.process_limits import few_descriptors, limited, no_disk, no_memory
from bench.chaos.processes import controller_of, is_baton, is_head, node_of
from bench.chaos.target import Member, Target
from bench.chaos.traffic import Answer, Traffic
from cluster.child import parent_of, process_tree
from cluster.doctor import read_tls, read_token
from core.errors import BatonError
from kv_transfer.control import KVControlClient

FROZEN_S: Final = 5.0
LIMITED_S: Final = 5.0
SLOW_S: Final = 10.0
SPOILT_S: Final = 5.0  # how long frames are spoilt
LEAVERS: Final = 100  # clients that go away at once
LAYER: Final = 2  # whose frames are spoilt; counted from 1
_NO_FAULTS: Final = {"drop_layer": 0, "corrupt_layer": 0, "never_offer": 0}


class CannotBreak(BatonError):
    """This cluster has not what the fault would break."""

    name = "cannot_break"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a fault has to work with."""

    target: Target
    traffic: Traffic
    chance: random.Random
    is_own_network: bool = False  # slowing its links slows nobody else
    may_lose_nodes: bool = False  # of Ray, for good, with all that runs there

    def victim(self, role: str | None) -> Member:
        """Choose a ready member of a role; None: the router. Raises CannotBreak."""
        return self.chance.choice(self.ready(role))

    def ready(self, role: str | None) -> list[Member]:
        """List the ready members of a role that run on this machine; None: the router. Raises CannotBreak for none."""
        ready = [member for member in self.target.members() if member.role == role and member.is_ready]
        here = [member for member in ready if is_baton(member.pid)]
        if not here:
            where = " on this machine" if ready else ""
            raise CannotBreak(f"no ready {role or 'router'}{where}")
        return here


@dataclass(frozen=True, slots=True)
class Broken:
    """What was done."""

    what: str
    victims: tuple[str, ...] = ()  # workers whose lives it ends; none: what is broken passes, or is no worker


Make: TypeAlias = Callable[[Scene], Awaitable[Broken]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to break; `make` returns once it is broken, and mended where that is its own affair."""

    name: str
    what: str
    make: Make
    cuts_clients: bool = False  # the client's own connection ends with it, which nobody can hide


def kill(role: str | None) -> Make:
    """Kill a whole process tree at once, as a machine that fails."""

    async def make(scene: Scene) -> Broken:
        member = await asyncio.to_thread(scene.victim, role)
        _signal_all(process_tree(member.pid), signal.SIGKILL)
        return Broken(f"SIGKILL to {member.name}", (member.name,) if role else ())

    return make


def kill_engine(role: str) -> Make:
    """Kill the engine core below a worker, as a fault of the engine."""

    async def make(scene: Scene) -> Broken:
        member = await asyncio.to_thread(scene.victim, role)
        below = process_tree(member.pid)[1:]
        if not below:
            raise CannotBreak(f"{member.name} has no engine process of its own")
        _signal_all(below, signal.SIGKILL)
        return Broken(f"SIGKILL to the engine core of {member.name}", (member.name,))

    return make


def terminate(role: str) -> Make:
    """Ask a worker to end, as a machine that is taken back with notice."""

    async def make(scene: Scene) -> Broken:
        member = await asyncio.to_thread(scene.victim, role)
        _signal_all([member.pid], signal.SIGTERM)
        return Broken(f"SIGTERM to {member.name}", (member.name,))

    return make


def freeze(role: str, *, engine_only: bool = False) -> Make:
    """Stop a worker's processes for some seconds, then let them go on."""

    async def make(scene: Scene) -> Broken:
        member = await asyncio.to_thread(scene.victim, role)
        what, frozen = _processes(member, engine_only=engine_only)
        _signal_all(frozen, signal.SIGSTOP)
        try:
            await asyncio.sleep(FROZEN_S)
        finally:
            _signal_all(frozen, signal.SIGCONT)
        return Broken(f"{what} stood still for {FROZEN_S:g} s")

    return make


def hang(role: str | None, *, engine_only: bool = False) -> Make:
    """Stop the processes of a worker, None: of the router, for good: nothing but their end helps."""

    async def make(scene: Scene) -> Broken:
        member = await asyncio.to_thread(scene.victim, role)
        what, frozen = _processes(member, engine_only=engine_only)
        _signal_all(frozen, signal.SIGSTOP)
        return Broken(f"{what} stands still for good", (member.name,) if role else ())

    return make


def kill_host(role: str) -> Make:
    """Kill the Ray actor above a worker, and the worker with it."""

    async def make(scene: Scene) -> Broken:
        member = await asyncio.to_thread(scene.victim, role)
        _signal_all([parent_of(member.pid)], signal.SIGKILL)
        return Broken(f"SIGKILL to the Ray actor of {member.name}", (member.name,))

    return make


async def kill_controller(scene: Scene) -> Broken:
    """Kill the controller's process, by the title that Ray gives it, on the node of a worker."""
    member = await asyncio.to_thread(scene.victim, "decode")
    pid = controller_of(member.pid)
    if pid is None:
        raise CannotBreak(f"the controller is not on the node of {member.name}")
    _signal_all([pid], signal.SIGKILL)
    return Broken("SIGKILL to the controller")


async def lose_node(scene: Scene) -> Broken:
    """Kill a node of Ray with all that runs there, as a machine that loses power; it does not come back.

    Neither the node of Ray's head nor that of the router or the controller.
    """
    workers = await asyncio.to_thread(lambda: [m for role in ("prefill", "decode") for m in scene.ready(role)])
    router = (await asyncio.to_thread(scene.ready, None))[0]
    by_node: dict[int, list[str]] = {}
    for member in workers:
        node = node_of(member.pid)
        if node is not None and not is_head(node) and node != node_of(router.pid) and controller_of(member.pid) is None:
            by_node.setdefault(node, []).append(member.name)
    if not by_node:
        raise CannotBreak("no node of Ray here has workers and neither Ray's head nor the router or the controller")
    if not scene.may_lose_nodes:
        raise CannotBreak("a node of Ray would be gone, with all that runs there: name it, `--fault lose-node`")
    node, names = scene.chance.choice(sorted(by_node.items()))
    _signal_all(process_tree(node), signal.SIGKILL)
    return Broken(f"SIGKILL to all of a node of Ray, with {', '.join(names)}", tuple(names))


def limit(role: str | None, kind: Callable[[int], tuple[int, int]], what: str) -> Make:
    """Hold all workers of a role, None: the router, to a limit for some seconds."""

    async def make(scene: Scene) -> Broken:
        members = await asyncio.to_thread(scene.ready, role)
        pids = [pid for member in members for pid in process_tree(member.pid)]
        with limited(pids, kind):
            await asyncio.sleep(LIMITED_S)
        return Broken(f"{', '.join(member.name for member in members)}: {what} for {LIMITED_S:g} s")

    return make


async def cut_links(scene: Scene) -> Broken:
    """Break every connection between the router and the workers, and between workers."""
    members = [m for m in await asyncio.to_thread(scene.target.members) if m.role is not None and m.is_ready]
    ports = {_port(address) for m in members for address in (m.address, m.kv_address)} - {0}
    try:
        await asyncio.to_thread(cut_connections, sorted(ports))
    except CannotCut as exc:
        raise CannotBreak(str(exc)) from exc
    return Broken(f"all connections to {len(members)} workers are cut")


async def slow_down(scene: Scene) -> Broken:
    """Make all links slow for some seconds."""
    if not scene.is_own_network:
        raise CannotBreak("links are slowed only with --own-network")
    try:
        with slow_links():
            await asyncio.sleep(SLOW_S)
    except CannotCut as exc:
        raise CannotBreak(str(exc)) from exc
    return Broken(f"all links carried {SLOW_RATE} together for {SLOW_S:g} s")


def spoil(**faults: int) -> Make:
    """Have every prefill worker spoil what it hands over, for some seconds."""

    async def make(scene: Scene) -> Broken:
        members = await asyncio.to_thread(scene.target.members)
        prefill = [member for member in members if member.role == "prefill" and member.is_ready]
        if not prefill:
            raise CannotBreak("no ready prefill")
        await _inject(scene.target, prefill, faults)
        try:
            await asyncio.sleep(SPOILT_S)
        finally:
            await _inject(scene.target, prefill, _NO_FAULTS)
        return Broken(f"{', '.join(faults)} on every prefill worker for {SPOILT_S:g} s")

    return make


async def leave(scene: Scene) -> Broken:
    """Have many clients go away in the middle of their streams."""
    seen: list[Answer] = await scene.traffic.leave_early(LEAVERS)
    scene.traffic.answers.extend(seen)
    return Broken(f"{LEAVERS} clients left")


SUITES: Final[Mapping[str, tuple[Fault, ...]]] = {
    "pd": (
        Fault("kill-prefill", "a prefill worker's processes are killed", kill("prefill")),
        Fault("kill-decode", "a decode worker's processes are killed", kill("decode")),
        Fault("kill-prefill-engine", "the engine core of a prefill worker is killed", kill_engine("prefill")),
        Fault("kill-decode-engine", "the engine core of a decode worker is killed", kill_engine("decode")),
        Fault("end-decode", "a decode worker is told to end (SIGTERM)", terminate("decode")),
        Fault("freeze-prefill", "a prefill worker stands still", freeze("prefill")),
        Fault("freeze-decode", "a decode worker stands still", freeze("decode")),
        Fault(
            "freeze-prefill-engine",
            "the engine core of a prefill worker stands still",
            freeze("prefill", engine_only=True),
        ),
        Fault(
            "freeze-decode-engine",
            "the engine core of a decode worker stands still",
            freeze("decode", engine_only=True),
        ),
        Fault("hang-decode", "a decode worker stands still for good", hang("decode")),
        Fault(
            "hang-decode-engine",
            "the engine core of a decode worker stands still for good",
            hang("decode", engine_only=True),
        ),
        Fault("kill-host", "the Ray actor of a decode worker is killed", kill_host("decode")),
        Fault("lose-node", "a node of Ray is killed, with its workers (only if named)", lose_node),
        Fault("kill-controller", "the controller's process is killed", kill_controller),
        Fault("cut-links", "the connections to all workers break", cut_links),
        Fault("slow-links", "all links are slow (--own-network)", slow_down),
        Fault("full-disk", "no file of a decode worker can grow", limit("decode", no_disk, "no disk")),
        Fault("no-memory", "decode workers get no more memory", limit("decode", no_memory, "no more memory")),
        Fault(
            "few-descriptors",
            "the router can open hardly another file",
            limit(None, few_descriptors, "few descriptors"),
        ),
        Fault("lose-frames", "KV frames of a layer are lost", spoil(drop_layer=LAYER)),
        Fault("corrupt-frames", "a byte of each KV frame of a layer is flipped", spoil(corrupt_layer=LAYER)),
        Fault("withhold-frames", "prefill never offers its KV", spoil(never_offer=1)),
        Fault("clients-leave", "many clients disconnect in the middle", leave),
        Fault("kill-router", "the router's process is killed", kill(None), cuts_clients=True),
        Fault("hang-router", "the router stands still for good", hang(None), cuts_clients=True),
    )
}


def _processes(member: Member, *, engine_only: bool) -> tuple[str, Sequence[int]]:
    pids = process_tree(member.pid)
    if not engine_only:
        return member.name, pids
    if not pids[1:]:
        raise CannotBreak(f"{member.name} has no engine process of its own")
    return f"the engine core of {member.name}", pids[1:]


def _port(address: str) -> int:
    port = address.rpartition(":")[2]
    return int(port) if port.isdecimal() else 0


async def _inject(target: Target, members: list[Member], faults: Mapping[str, int]) -> None:
    token = read_token(Path(target.run_dir))
    tls = read_tls(Path(target.run_dir))
    for member in members:
        client = KVControlClient(member.kv_address, token, tls=tls)
        try:
            if not await client.inject(faults):
                raise CannotBreak(f"{member.name} breaks no hand-over on purpose: set kv.allow_faults and start again")
        finally:
            await client.close()


def _signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
