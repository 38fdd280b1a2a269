"""From the sizes there are to the sizes that are wanted: who changes role, how many start, how many go.

Owns the way. Flips come first, for they take seconds and starts take minutes. Must not know why sizes are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from core.control.actions import PoolSizes, RoleFlip, WorkerReport
from core.types import Role

READY: Final = "ready"  # WorkerReport.state of a worker that takes work


def flips_between(now: PoolSizes, wanted: PoolSizes, workers: Iterable[WorkerReport]) -> tuple[RoleFlip, ...]:
    """Choose the ready workers that change role: those with the least to end first, for they are there the soonest.

    At most as many as one pool has too many and the other too few, and never the last ready worker of a role.
    """
    ready = [worker for worker in workers if worker.state == READY]
    for to, source in ((Role.PREFILL, Role.DECODE), (Role.DECODE, Role.PREFILL)):
        count = min(wanted.of(to) - now.of(to), now.of(source) - wanted.of(source))
        if count > 0:
            able = sorted((w for w in ready if w.role is source), key=_left_to_do)
            return tuple(RoleFlip(worker.worker_id, to) for worker in able[: min(count, len(able) - 1)])
    return ()


def _left_to_do(worker: WorkerReport) -> tuple[float, str]:
    return (worker.num_running + worker.num_waiting, worker.worker_id)
