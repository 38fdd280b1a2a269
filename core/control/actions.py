"""The seam between the controller, which measures and acts, and whoever decides sizes and roles.

Owns the Protocol of a decider, what it is told and what it answers. The controller (cluster/) asks every few seconds
and carries decisions out; deciders (core/control/, sim/) are pure towards it: same observations, same decisions. Either
side imports this module and not the other. Times are seconds of one monotonic clock, the controller's.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from core.config.models import BatonConfig
from core.latency.step import StepCost
from core.types import Role

MAX_SAMPLES = 2048  # ended requests that one observation holds


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """How many workers of each role there are to be."""

    prefill: int
    decode: int

    def of(self, role: Role) -> int:
        """Look one role up."""
        return self.prefill if role is Role.PREFILL else self.decode

    def flipped(self, to: Role) -> PoolSizes:
        """Move one worker from the other role to `to`."""
        step = 1 if to is Role.PREFILL else -1
        return PoolSizes(self.prefill + step, self.decode - step)


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """What sizes may be; both bounds included."""

    least: PoolSizes
    most: PoolSizes  # of each pool if workers of the other one change their role, by configuration and room
    most_workers: int | None = None  # of both pools together, by the room that the cluster has; None: not known

    def allow(self, sizes: PoolSizes) -> bool:
        """Whether sizes lie within."""
        total = sizes.prefill + sizes.decode
        fits = self.most_workers is None or total <= self.most_workers
        return fits and all(self.least.of(role) <= sizes.of(role) <= self.most.of(role) for role in Role)


@dataclass(frozen=True, slots=True)
class RoleFlip:
    """One running worker takes the other role; its weights and cache stay."""

    worker_id: str
    to: Role


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to change, and why."""

    sizes: PoolSizes  # once flips are done, and workers started or drained to reach them
    reason: str  # one line, for people
    flips: tuple[RoleFlip, ...] = ()  # done first
    figures: tuple[tuple[str, float], ...] = ()  # what the decision rests on, by name: kept with its event


class Verdict(enum.StrEnum):
    """What a decision came to."""

    BETTER = "better"
    WORSE = "worse"
    AS_PREDICTED = "as predicted"
    TRAFFIC_CHANGED = "traffic changed"
    TOO_FEW = "too few requests"


@dataclass(frozen=True, slots=True)
class DecisionOutcome:
    """A decision and what came of it: an event of its own, later."""

    decision: Decision
    decided_s: float
    judged_s: float
    verdict: Verdict
    attainment_before: float  # of all classes together
    attainment_after: float


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """What the router learnt of the engines while they served; see core.latency.online."""

    prefill: StepCost
    decode: StepCost
    request_overhead_s: float  # in every time to first token


@dataclass(frozen=True, slots=True)
class RequestSample:
    """One request that ended, as the router measured it."""

    arrived_s: float
    slo_class: str
    prompt_tokens: int
    cached_tokens: int  # of the prompt
    output_tokens: int
    ttft_s: float | None  # from arrival, what the request waited in the router included; None: it had no token
    tpot_s: float | None
    waited_s: float  # in the router, until it was sent to a worker
    kept: bool | None  # its SLO; None: its client is why it cannot be said
    outcome: str  # "ok", "rejected", ...


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One SLO class since the previous observation."""

    slo_class: str
    ttft_s: float  # target
    tpot_s: float  # target
    attainment: float  # target: share of requests
    num_arrived: int
    num_ended: int  # of which the SLO can be told
    num_kept: int
    num_refused: int


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker as it is."""

    worker_id: str
    role: Role
    state: str  # of core.control.reconcile.Phase
    since_s: float  # when it came into that state
    role_since_s: float  # when it took its role: measurements before belong to the other one
    num_running: int = 0
    num_waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    step_s: float = 0.0  # of its latest engine step
    owed_prompt_tokens: int = 0  # sent to it and not computed
    context_tokens: int = 0  # of the requests that decode, or will decode, there
    block_size: int = 0  # tokens of a KV block; 0: not known yet


@dataclass(frozen=True, slots=True)
class Observation:
    """All that a decider is told; counts and samples are since the previous observation."""

    now_s: float
    window_s: float  # since the previous observation
    wanted: PoolSizes  # in force: what the pools are, or are on their way to
    limits: SizeLimits
    workers: tuple[WorkerReport, ...]  # ordered by id
    classes: tuple[ClassReport, ...]  # ordered by name
    samples: tuple[RequestSample, ...]  # of those that ended, by time of arrival; an even choice where too many ended
    num_ended: int  # that `samples` stand for
    num_held: int  # requests that wait in the router
    held_tokens: int  # prompt tokens of those
    least_slack_s: float | None  # until the first of those must be begun to keep its SLO; None: none waits
    start_s: float  # measured time from the wish for a worker to its first request; the latest, or what to expect
    flip_s: float  # the same of a flip
    is_changing: bool  # an earlier change is not complete: workers start, drain or flip
    costs: MeasuredCosts | None = None  # None: not learnt yet


class Decider(Protocol):
    """Decides sizes and roles; one object for the controller's life, called from one thread at a time.

    Who subclasses it has no outcomes to tell and always knows enough, unless it says otherwise.
    """

    def decide(self, observation: Observation) -> Decision | None:
        """Say what is to change; None: nothing.

        May take a second or so. Never raises. The controller refuses what lies outside `observation.limits` or flips a
        worker that is not ready, and says so in its events; it then asks again as ever.
        """
        ...

    def take_outcomes(self) -> tuple[DecisionOutcome, ...]:
        """Hand over the outcomes of decisions that were found since the last call."""
        return ()

    @property
    def waits_for(self) -> str:
        """What is missing for a decision, in a few words; empty: nothing is."""
        return ""


DeciderFactory = Callable[[BatonConfig], Decider]  # a module-level function: it travels by name to the controller
