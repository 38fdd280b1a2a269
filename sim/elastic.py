"""A fleet whose workers start, stop and change role while requests run: what the controller's actions do, and how long.

Owns the life of each device: off, starting, ready, draining, switching. A device is two workers of the kernel, one of
either role, of which at most one takes work and none does while it changes: a worker drains before the other joins, so
queues and sequences go on across every change. Must not decide.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from core.control.actions import Decision, PoolSizes, SizeLimits, WorkerReport
from core.types import Role
from sim.cluster import ClusterSpec
from sim.kernel.outages import admit, retire
from sim.kernel.state import State

SWITCH_S: Final = 3.0  # a drained worker's way to the other role, weights resident: a self-test and a hello


@dataclass(frozen=True, slots=True)
class Fleet:
    """What there is to begin with, and how long changes take."""

    worker: ClusterSpec  # its pools say what one worker of either role is; how many it has does not count
    devices: int  # at most at one time
    prefill: int  # ready at the start
    decode: int
    start_s: tuple[float, float] = (60.0, 180.0)  # a start takes between these
    switch_s: float = SWITCH_S

    def __post_init__(self) -> None:
        if self.worker.prefill is None:
            raise ValueError("a fleet has workers of both roles; give a cluster with a prefill pool")
        if self.prefill + self.decode > self.devices:
            raise ValueError(f"{self.prefill} + {self.decode} workers need more than {self.devices} devices")

    @property
    def cluster(self) -> ClusterSpec:
        """The kernel's cluster: a worker of either role for each device."""
        assert self.worker.prefill is not None
        both = (replace(pool, replicas=self.devices) for pool in (self.worker.prefill, self.worker.decode))
        prefill, decode = both
        return replace(self.worker, prefill=prefill, decode=decode)

    @property
    def limits(self) -> SizeLimits:
        """Let each pool be anything from one worker to all devices but one."""
        return SizeLimits(PoolSizes(1, 1), PoolSizes(self.devices - 1, self.devices - 1), self.devices)


class _Phase(enum.StrEnum):
    """Where a device is; the names are those that the live controller uses."""

    OFF = "off"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FLIPPING = "flipping"  # drained, on its way to the other role


@dataclass(slots=True)
class _Device:
    """One device."""

    phase: _Phase = _Phase.OFF
    role: Role = Role.PREFILL  # that it has, or that a start leads to
    next_role: Role | None = None  # after a drain; None: it goes away
    until_s: float = 0.0  # of a start or a switch
    since_s: float = 0.0  # that it is in this phase
    role_since_s: float = 0.0

    def enter(self, phase: _Phase, now_s: float, *, role: Role | None = None, until_s: float = 0.0) -> None:
        """Go on to another phase, where a role is given with another one."""
        if role is not None and role is not self.role:
            self.role, self.role_since_s = role, now_s
        self.phase, self.since_s, self.until_s = phase, now_s, until_s


class ElasticFleet:
    """The devices of one run. Times never fall from call to call."""

    def __init__(self, fleet: Fleet, state: State, *, seed: int) -> None:
        self._fleet, self._state = fleet, state
        self._rng = np.random.default_rng([seed, 0xE1A571C])
        self._devices = [_Device() for _ in range(fleet.devices)]
        self._told_s = 0.0
        self.device_s = 0.0  # seconds that devices were held, starts and drains included
        self.flips = 0
        self.starts = 0
        state.workers.alive[:-1] = state.workers.takes[:-1] = 0
        for number in range(fleet.prefill + fleet.decode):
            role = Role.PREFILL if number < fleet.prefill else Role.DECODE
            self._devices[number] = _Device(_Phase.READY, role)
            slot = self._slot(number, role)
            state.workers.alive[slot] = state.workers.takes[slot] = 1

    @property
    def wanted(self) -> PoolSizes:
        """What the pools are, or are on their way to."""
        coming = [device.next_role or device.role for device in self._devices if _stays(device)]
        return PoolSizes(coming.count(Role.PREFILL), coming.count(Role.DECODE))

    @property
    def is_changing(self) -> bool:
        """Whether a worker starts, drains or flips."""
        return any(device.phase not in (_Phase.OFF, _Phase.READY) for device in self._devices)

    def ready(self, role: Role) -> int:
        """Count the workers of a role that take work."""
        return sum(device.phase is _Phase.READY and device.role is role for device in self._devices)

    @property
    def held(self) -> int:
        """Count the devices that are not off."""
        return sum(device.phase is not _Phase.OFF for device in self._devices)

    def tick(self, now_s: float) -> None:
        """Let what is due happen: starts and switches that are over, drains that have ended."""
        self.device_s += (now_s - self._told_s) * self.held
        self._told_s = now_s
        for number, device in enumerate(self._devices):
            if device.phase is _Phase.DRAINING:
                self._end_drain(number, device, now_s)
            if device.phase in (_Phase.STARTING, _Phase.FLIPPING) and device.until_s <= now_s:
                device.enter(_Phase.READY, now_s)
                admit(self._state, self._slot(number, device.role), now_s)

    def apply(self, decision: Decision, now_s: float) -> None:
        """Flip the workers named, then start or stop as many as are missing or too many."""
        for flip in decision.flips:
            self._flip(int(flip.worker_id.removeprefix(_PREFIX)), flip.to, now_s)
        for role in Role:
            missing = decision.sizes.of(role) - self.wanted.of(role)
            if missing > 0:
                self._start(role, missing, now_s)
            for _ in range(-missing):
                self._stop_one(role, now_s)

    def reports(self) -> tuple[WorkerReport, ...]:
        """Describe the devices that are not off, as a controller knows them; one that flips has its new role."""
        return tuple(
            self._report(number, device)
            for number, device in enumerate(self._devices)
            if device.phase is not _Phase.OFF
        )

    def _report(self, number: int, device: _Device) -> WorkerReport:
        workers, slot = self._state.workers, self._slot(number, device.role)
        flips = device.next_role is not None
        return WorkerReport(
            worker_id=_name(number),
            role=device.next_role or device.role,
            state=_Phase.FLIPPING if flips else device.phase,
            since_s=device.since_s,
            role_since_s=device.role_since_s,
            num_running=int(workers.running[slot]),
            num_waiting=int(workers.waiting[slot]),
            kv_blocks_used=int(workers.used_blocks[slot]),
            kv_blocks_total=int(self._state.pools.kv_blocks[workers.pool[slot]]),
            step_s=float(workers.step_s[slot]),
            owed_prompt_tokens=int(workers.owed_tokens[slot]),
            context_tokens=int(workers.load_context[slot]),
        )

    def _start(self, role: Role, count: int, now_s: float) -> None:
        for device in [device for device in self._devices if device.phase is _Phase.OFF][:count]:
            delay_s = float(self._rng.uniform(*self._fleet.start_s))
            device.role_since_s = now_s
            device.enter(_Phase.STARTING, now_s, role=role, until_s=now_s + delay_s)
            self.starts += 1

    def _stop_one(self, role: Role, now_s: float) -> None:
        """Let the worker go that was to come last, else the one with the least work."""
        starting = [d for d in self._devices if d.phase is _Phase.STARTING and d.role is role]
        if starting:
            max(starting, key=lambda device: device.until_s).enter(_Phase.OFF, now_s)
            return
        legs = self._state.workers.legs
        ready = [n for n, d in enumerate(self._devices) if d.phase is _Phase.READY and d.role is role]
        if ready:
            least = min(ready, key=lambda number: (int(legs[self._slot(number, role)]), number))
            self._drain(least, None, now_s)

    def _flip(self, number: int, to: Role, now_s: float) -> None:
        device = self._devices[number]
        if device.phase is not _Phase.READY or device.role is to:
            raise ValueError(f"{_name(number)} is {device.phase} and {device.role}: only ready workers flip, to {to}")
        self.flips += 1
        self._drain(number, to, now_s)

    def _drain(self, number: int, next_role: Role | None, now_s: float) -> None:
        device = self._devices[number]
        device.next_role = next_role
        device.enter(_Phase.DRAINING, now_s)
        self._state.workers.takes[self._slot(number, device.role)] = 0

    def _end_drain(self, number: int, device: _Device, now_s: float) -> None:
        slot = self._slot(number, device.role)
        if self._state.workers.legs[slot]:
            return
        retire(self._state, slot, now_s)
        if device.next_role is None:
            device.enter(_Phase.OFF, now_s)
            return
        role, device.next_role = device.next_role, None
        device.enter(_Phase.FLIPPING, now_s, role=role, until_s=now_s + self._fleet.switch_s)

    def _slot(self, number: int, role: Role) -> int:
        return number if role is Role.PREFILL else self._fleet.devices + number


_PREFIX: Final = "worker-"


def _name(number: int) -> str:
    return f"{_PREFIX}{number:04}"


def _stays(device: _Device) -> bool:
    """Whether a device is a worker, or will be."""
    if device.phase is _Phase.DRAINING:
        return device.next_role is not None
    return device.phase is not _Phase.OFF
