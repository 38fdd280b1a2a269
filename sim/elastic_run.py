"""A workload through a fleet that a controller changes: time in small parts, and now and then a decision.

Owns both gears of it, the search gear's rules and the router's own policies, and the figures. The controller sees only
what a live one could know (sim.elastic_view).
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappush
from typing import Final

import numpy as np

from core.control.actions import Decider, Decision, SizeLimits
from core.policy.protocol import Policy
from core.types import Role
from sim.elastic import ElasticFleet, Fleet
from sim.elastic_view import ElasticView
from sim.kernel.run import run_part
from sim.kernel.state import ENDED, NOBODY, ROOM, State
from sim.outcome import Outcome, Target
from sim.policy_gear import Gear, Kind, Refused
from sim.simulate import outcome_of, start
from sim.workload import Workload

TICK_S: Final = 1.0  # drains that have ended are seen at such steps
_LONGEST_END_S: Final = 3600.0  # after the last arrival; what has not ended by then is counted as it is


@dataclass(frozen=True, slots=True)
class Epoch:
    """The fleet after one time that the decider was asked."""

    at_s: float
    prefill: int  # workers that take work
    decode: int
    devices: int  # held
    decision: Decision | None


@dataclass(frozen=True, slots=True, eq=False)
class ElasticOutcome:
    """What became of the requests, and what it took."""

    outcome: Outcome
    device_s: float  # from the start to the last arrival
    flips: int
    starts: int
    epochs: tuple[Epoch, ...]


def run_elastic(
    fleet: Fleet,
    workload: Workload,
    targets: tuple[Target, ...],
    decider: Decider | None = None,
    *,
    judged_by: tuple[Target, ...] | None = None,
    limits: SizeLimits | None = None,
    every_s: float = 10.0,
    seed: int = 0,
) -> ElasticOutcome:
    """Run the workload; the decider is asked every `every_s` seconds, and what it says is done.

    Routing and admission are by `targets`; what the decider is told was kept is by `judged_by`, if given. Without
    `limits` a pool may be anything from one worker to all devices but one. Equal arguments give equal outcomes.
    """
    cluster = fleet.cluster
    state = start(cluster, workload, targets, seed=seed)
    control = _Control(fleet, state, workload, judged_by or targets, decider, limits, every_s=every_s, seed=seed)
    now_s, arrived = 0.0, 0
    while control.goes_on(now_s):
        now_s += TICK_S
        last = int(np.searchsorted(workload.arrived_s, now_s, side="right"))
        run_part(state, arrived, last, now_s)
        arrived = last
        control.tick(now_s)
    return control.outcome(outcome_of(cluster, state))


def run_elastic_with_policy(
    fleet: Fleet,
    workload: Workload,
    targets: tuple[Target, ...],
    policy: Policy,
    decider: Decider | None = None,
    *,
    limits: SizeLimits | None = None,
    every_s: float = 10.0,
    seed: int = 0,
) -> ElasticOutcome:
    """Do the same with every arrival placed by `policy`, see sim.policy_gear."""
    gear = _ElasticGear(fleet, workload, targets, policy, seed=seed)
    gear.control = _Control(fleet, gear.state, workload, targets, decider, limits, every_s=every_s, seed=seed)
    gear.run()
    return gear.control.outcome(gear.outcome())


class _ElasticGear(Gear):
    """The full gear with a fleet that changes at each tick of its agenda."""

    control: _Control

    def __init__(
        self, fleet: Fleet, workload: Workload, targets: tuple[Target, ...], policy: Policy, *, seed: int
    ) -> None:
        super().__init__(
            fleet.cluster,
            workload,
            targets,
            policy,
            seed=seed,
            refused=Refused.GIVE_UP,
            predicted_by=None,
            calibration=None,
        )
        heappush(self._agenda, (TICK_S, Kind.CONTROL, NOBODY))

    @property
    def state(self) -> State:
        """The kernel's state."""
        return self._state

    def _happen(self, now_s: float, kind: Kind, request: int) -> None:
        if kind is not Kind.CONTROL:
            super()._happen(now_s, kind, request)
            return
        room = self._state.counts[ROOM]
        run_part(self._state, 0, 0, now_s)
        self.control.tick(now_s)
        if self._waiting and self._state.counts[ROOM] != room:
            self._look_again(now_s)
        if self.control.goes_on(now_s):
            heappush(self._agenda, (now_s + TICK_S, Kind.CONTROL, NOBODY))


class _Control:
    """The fleet and its decider beside one run."""

    def __init__(
        self,
        fleet: Fleet,
        state: State,
        workload: Workload,
        targets: tuple[Target, ...],
        decider: Decider | None,
        limits: SizeLimits | None,
        *,
        every_s: float,
        seed: int,
    ) -> None:
        self._state, self._arrived_s, self._decider = state, workload.arrived_s, decider
        self._limits = limits or fleet.limits
        self._devices = ElasticFleet(fleet, state, seed=seed)
        self._view = ElasticView(fleet, state, targets)
        self._every_s = self._ask_s = every_s
        self._last_s = float(workload.arrived_s[-1]) if len(workload) else 0.0
        self._epochs: list[Epoch] = []
        self._device_s = 0.0

    def goes_on(self, now_s: float) -> bool:
        """Whether requests are to come or have not ended."""
        if now_s < self._last_s:
            return True
        return now_s < self._last_s + _LONGEST_END_S and bool((self._state.reqs.stage != ENDED).any())

    def tick(self, now_s: float) -> None:
        """Let the fleet go on, and ask the decider when it is time. Raises ValueError for sizes outside the limits."""
        self._devices.tick(now_s)
        if now_s <= self._last_s:
            self._device_s = self._devices.device_s
        if self._decider is None or now_s < self._ask_s - TICK_S / 2:
            return
        self._ask_s += self._every_s
        arrived = int(np.searchsorted(self._arrived_s, now_s, side="right"))
        seen = self._view.observe(now_s, arrived, self._devices, self._limits)
        decision = self._decider.decide(seen)
        if decision is not None:
            if not self._limits.allow(decision.sizes):
                raise ValueError(f"{decision.sizes} at {now_s:.0f} s is outside of {self._limits}")
            self._devices.apply(decision, now_s)
        self._epochs.append(self._epoch(now_s, decision))

    def outcome(self, outcome: Outcome) -> ElasticOutcome:
        """Put what became of the requests beside what it took."""
        return ElasticOutcome(outcome, self._device_s, self._devices.flips, self._devices.starts, tuple(self._epochs))

    def _epoch(self, now_s: float, decision: Decision | None) -> Epoch:
        devices = self._devices
        return Epoch(now_s, devices.ready(Role.PREFILL), devices.ready(Role.DECODE), devices.held, decision)
