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

from bench.chaos.target import Member, Target
from bench.chaos.traffic import Answer, Traffic
from cluster.child import process_tree
from cluster.doctor import read_tls, read_token
from core.errors import BatonError
from kv_transfer.control import KVControlClient

FROZEN_S: Final = 5.0
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

    def victim(self, role: str | None) -> Member:
        """Choose a ready member of a role; None: the router. Raises CannotBreak."""
        ready = [member for member in self.target.members() if member.role == role and member.is_ready]
        if not ready:
            raise CannotBreak(f"no ready {role or 'router'}")
        return self.chance.choice(ready)


@dataclass(frozen=True, slots=True)
class Broken:
    """What was done."""

    what: str
    victim: str | None = None  # worker whose life it ends; None: what is broken passes, or is no worker


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
        return Broken(f"SIGKILL to {member.name}", member.name if role else None)

    return make


def kill_engine(role: str) -> Make:
    """Kill the engine core below a worker, as a fault of the engine."""

    async def make(scene: Scene) -> Broken:
        member = await asyncio.to_thread(scene.victim, role)
        below = process_tree(member.pid)[1:]
        if not below:
            raise CannotBreak(f"{member.name} has no engine process of its own")
        _signal_all(below, signal.SIGKILL)
        return Broken(f"SIGKILL to the engine core of {member.name}", member.name)

    return make


def terminate(role: str) -> Make:
    """Ask a worker to end, as a machine that is taken back with notice."""

    async def make(scene: Scene) -> Broken:
        member = await asyncio.to_thread(scene.victim, role)
        _signal_all([member.pid], signal.SIGTERM)
        return Broken(f"SIGTERM to {member.name}", member.name)

    return make


def freeze(role: str) -> Make:
    """Stop a worker's processes for some seconds, then let them go on."""

    async def make(scene: Scene) -> Broken:
        member = await asyncio.to_thread(scene.victim, role)
        frozen = process_tree(member.pid)
        _signal_all(frozen, signal.SIGSTOP)
        try:
            await asyncio.sleep(FROZEN_S)
        finally:
            _signal_all(frozen, signal.SIGCONT)
        return Broken(f"{member.name} stood still for {FROZEN_S:g} s")

    return make


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
        Fault("lose-frames", "KV frames of a layer are lost", spoil(drop_layer=LAYER)),
        Fault("corrupt-frames", "a byte of each KV frame of a layer is flipped", spoil(corrupt_layer=LAYER)),
        Fault("withhold-frames", "prefill never offers its KV", spoil(never_offer=1)),
        Fault("clients-leave", "many clients disconnect in the middle", leave),
        Fault("kill-router", "the router's process is killed", kill(None), cuts_clients=True),
    )
}


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
