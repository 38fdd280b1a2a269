"""The plain alternative: each pool by itself, to a target of one figure, as Kubernetes' autoscaler does it.

Owns the rule: workers = ceil(workers * figure / target), nothing within a tenth of the target, and fewer only when the
most that was wanted in five minutes says so (Kubernetes, Horizontal Pod Autoscaling, algorithm details and defaults).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from core.control.actions import Decider, Decision, Observation, PoolSizes, WorkerReport
from core.types import Role

_TOLERANCE: Final = 0.1
_DOWN_AFTER_S: Final = 300.0


@dataclass(slots=True)
class TargetTracking(Decider):
    """Implements core.control.actions.Decider."""

    owed_tokens: float  # prompt tokens that wait or run, for each prefill worker
    running: float  # sequences, for each decode worker
    _wanted: deque[tuple[float, PoolSizes]] = field(default_factory=deque)

    def decide(self, observation: Observation) -> Decision | None:
        """Size each pool by its own figure."""
        seen, now = observation, observation.wanted
        wanted = PoolSizes(
            self._of(seen, Role.PREFILL, (w.owed_prompt_tokens for w in _ready(seen, Role.PREFILL)), self.owed_tokens),
            self._of(
                seen, Role.DECODE, (w.num_running + w.num_waiting for w in _ready(seen, Role.DECODE)), self.running
            ),
        )
        self._wanted.append((seen.now_s, wanted))
        while self._wanted[0][0] < seen.now_s - _DOWN_AFTER_S:
            self._wanted.popleft()
        most = PoolSizes(max(w.prefill for _, w in self._wanted), max(w.decode for _, w in self._wanted))
        sizes = PoolSizes(*(max(wanted.of(r), min(now.of(r), most.of(r))) for r in Role))
        most_workers = seen.limits.most_workers
        while (
            most_workers is not None and sizes.prefill + sizes.decode > most_workers
        ):  # what finds no room stays pending
            larger = Role.PREFILL if sizes.prefill >= sizes.decode else Role.DECODE
            sizes = PoolSizes(sizes.prefill - (larger is Role.PREFILL), sizes.decode - (larger is Role.DECODE))
        return None if sizes == now else Decision(sizes, f"target tracking wants {wanted}")

    def _of(self, seen: Observation, role: Role, figures: Iterable[float], target: float) -> int:
        values = list(figures)
        ratio = sum(values) / len(values) / target if values else 1.0
        count = seen.wanted.of(role) if abs(ratio - 1.0) <= _TOLERANCE else math.ceil(len(values) * ratio)
        return min(seen.limits.most.of(role), max(seen.limits.least.of(role), count))


def _ready(seen: Observation, role: Role) -> tuple[WorkerReport, ...]:
    return tuple(worker for worker in seen.workers if worker.role is role and worker.state == "ready")
