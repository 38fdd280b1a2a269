"""A decider where no profile was measured: it reckons with what the router learns of the engines while they serve.

Owns when that is enough, and what it says until then. The router fits the steps that workers report
(core.latency.online); those of both pools must be known, and the room for KV. Sizes by fitted costs are as sound as the
fit, which is of the loads that were there: `pressure` corrects what it misses beyond them, as it does for profiles, and
where the simulator checks sizes it does so with the same fit. Must not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from core.control.actions import Decision, DecisionOutcome, Observation
from core.control.capacity import ServiceModel, WorkerModel
from core.control.decider import SizingDecider
from core.policy.context import ClassTarget
from core.types import Role

WAITS: Final = "costs are measured while requests run, for there is no plan.profile; none are known of both pools yet"


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker of a role may compute in one step."""

    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class MeasuredService:
    """What is known of a service beside its costs."""

    prefill: WorkerLimits
    decode: WorkerLimits
    classes: tuple[str, ...]
    targets: tuple[ClassTarget, ...]  # one for each class

    def model(self, seen: Observation) -> ServiceModel | None:
        """Reckon with the costs in `seen`; None while they are not known."""
        costs = seen.costs
        room = {role: _kv_tokens(seen, role) for role in Role}
        if costs is None or not any(room.values()):
            return None
        either = max(room.values())  # workers of both pools are alike where one tells nothing
        return ServiceModel(
            prefill=_worker(WorkerModel(costs.prefill, room[Role.PREFILL] or either), self.prefill),
            decode=_worker(WorkerModel(costs.decode, room[Role.DECODE] or either), self.decode),
            classes=self.classes,
            targets=self.targets,
            request_overhead_s=costs.request_overhead_s,
        )


class MeasuredDecider:
    """Implements core.control.actions.Decider."""

    def __init__(self, service: MeasuredService, make: Callable[[ServiceModel], SizingDecider]) -> None:
        """Have the decider made once costs are known; from then on it follows them."""
        self._service = service
        self._make = make
        self._decider: SizingDecider | None = None

    @property
    def waits_for(self) -> str:
        """See Decider."""
        return WAITS if self._decider is None else ""

    def decide(self, observation: Observation) -> Decision | None:
        """Say what is to change; see Decider. Nothing before costs are known."""
        model = self._service.model(observation)
        if model is not None and self._decider is None:
            self._decider = self._make(model)
        if self._decider is None:
            return None
        if model is not None:
            self._decider.use(model)
        return self._decider.decide(observation)

    def take_outcomes(self) -> tuple[DecisionOutcome, ...]:
        """See Decider."""
        return () if self._decider is None else self._decider.take_outcomes()


def _kv_tokens(seen: Observation, role: Role) -> int:
    """Say how many tokens of KV the smallest worker of a role has room for; 0: none has told."""
    told = [w.kv_blocks_total * w.block_size for w in seen.workers if w.role is role]
    return min((tokens for tokens in told if tokens), default=0)


def _worker(worker: WorkerModel, limits: WorkerLimits) -> WorkerModel:
    return replace(worker, max_num_seqs=limits.max_num_seqs, max_num_batched_tokens=limits.max_num_batched_tokens)
