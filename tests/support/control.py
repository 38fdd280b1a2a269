"""A service of small figures, and observations of it, for tests of the controller's decisions."""

from __future__ import annotations

import numpy as np

from core.control.actions import (
    ClassReport,
    Decision,
    Observation,
    PoolSizes,
    RequestSample,
    SizeLimits,
    WorkerReport,
)
from core.control.capacity import ServiceModel, WorkerModel
from core.control.demand import Demand
from core.latency.step import StepCost, Table
from core.policy.context import ClassTarget
from core.types import Role

CLASS = "chat"


def service() -> ServiceModel:
    """A prompt of n tokens takes 10 + n / 10 ms, a decode step of B sequences 10 + B / 10 ms; 500 and 20 ms, 90 %."""
    cost = StepCost(Table.line(0.01, 1e-4), Table.constant(0.0), Table.line(0.01, 1e-4), Table.constant(0.0))
    worker = WorkerModel(cost, kv_capacity_tokens=200_000)
    return ServiceModel(worker, worker, (CLASS,), (ClassTarget(0.5, 0.02),))


def demand_of(rate: float, *lengths: tuple[int, int]) -> Demand:
    """Ask for prompts and outputs of these lengths, in equal shares."""
    prompt, output = np.array(lengths, np.float64).T
    none, weight = np.zeros(len(lengths)), np.full(len(lengths), 1.0 / len(lengths))
    return Demand(rate, prompt, none, output, none.astype(np.int64), weight)


class Watched:
    """A cluster that does at once what it is told, and what a controller would see of it."""

    def __init__(self, sizes: PoolSizes, most: int) -> None:
        self.roles = {f"w{i:02}": Role.PREFILL if i < sizes.prefill else Role.DECODE for i in range(sum_of(sizes))}
        self.limits = SizeLimits(PoolSizes(1, 1), PoolSizes(most - 1, most - 1))
        self.now_s = 0.0
        self._next = len(self.roles)

    @property
    def sizes(self) -> PoolSizes:
        """Count the workers."""
        roles = list(self.roles.values())
        return PoolSizes(roles.count(Role.PREFILL), roles.count(Role.DECODE))

    def seen(
        self, arrived: int, lengths: tuple[int, int], *, kept: float = 1.0, slack_s: float | None = None
    ) -> Observation:
        """Let ten seconds pass in which so many requests of these lengths arrived and ended."""
        self.now_s += 10.0
        count = min(arrived, 50)
        sample = RequestSample(self.now_s - 9, CLASS, lengths[0], 0, lengths[1], 0.1, 0.015, 0.0, True, "ok")
        report = ClassReport(CLASS, 0.5, 0.02, 0.9, arrived, arrived, round(kept * arrived), 0)
        return Observation(
            now_s=self.now_s,
            window_s=10.0,
            wanted=self.sizes,
            limits=self.limits,
            workers=tuple(WorkerReport(name, role, "ready", 0.0, 0.0) for name, role in sorted(self.roles.items())),
            classes=(report,),
            samples=(sample,) * count,
            num_ended=arrived,
            num_held=0,
            held_tokens=0,
            least_slack_s=slack_s,
            start_s=120.0,
            flip_s=3.0,
            is_changing=False,
        )

    def apply(self, decision: Decision | None) -> None:
        """Do what was decided."""
        if decision is None:
            return
        for flip in decision.flips:
            assert self.roles[flip.worker_id] is not flip.to
            self.roles[flip.worker_id] = flip.to
        for role in Role:
            of_role = [name for name, has in sorted(self.roles.items()) if has is role]
            for name in of_role[decision.sizes.of(role) :]:
                del self.roles[name]
            for _ in range(decision.sizes.of(role) - len(of_role)):
                self.roles[f"w{self._next:02}"] = role
                self._next += 1


def sum_of(sizes: PoolSizes) -> int:
    """Count the workers of both pools."""
    return sizes.prefill + sizes.decode
