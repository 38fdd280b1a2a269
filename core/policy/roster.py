"""What is predicted of each worker whatever the request, kept until the worker's view is another object.

Owns the columns that a choice runs over, by fingerprint and in order of worker id, and when they are worked out again.
Views are immutable, so what is kept is what would be worked out: no answer depends on what was asked before. Must not
choose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import compress
from operator import is_not
from typing import Final

from core.policy.prediction import Batch, PoolForecast
from core.types import ClusterView, Fingerprint, Role, WorkerView

_NOBODY: Final = Batch(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


class Senders:
    """The prefill workers of one fingerprint, as columns."""

    __slots__ = ("factors", "free_at_s", "ids", "owed_s", "slots", "views")

    def __init__(self, pool: PoolForecast, views: list[WorkerView]) -> None:
        self.views = views
        self.ids = [view.record.worker_id for view in views]
        self.slots = {worker_id: slot for slot, worker_id in enumerate(self.ids)}
        self.owed_s = [0.0] * len(views)
        self.free_at_s = [0.0] * len(views)
        self.factors = [1.0] * len(views)
        for slot, view in enumerate(views):
            self.put(pool, slot, view)

    def put(self, pool: PoolForecast, slot: int, view: WorkerView) -> None:
        """Take over what a worker looks like."""
        self.views[slot] = view
        self.owed_s[slot], self.free_at_s[slot] = pool.waiting(view)
        self.factors[slot] = view.speed.prefill_factor

    def wait_s(self, slot: int, now_s: float) -> float:
        """Predict when a worker has computed the prompts that it owes."""
        owed_s, left_s = self.owed_s[slot], self.free_at_s[slot] - now_s
        return owed_s if owed_s < left_s else (left_s if left_s > 0.0 else 0.0)

    def ready_s(self, own_s: float, now_s: float) -> list[float]:
        """Predict for each worker when it has computed a further prompt that takes `own_s` at its usual speed."""
        return [
            (owed_s if owed_s < free_s - now_s else (free_s - now_s if free_s > now_s else 0.0)) + own_s * factor
            for owed_s, free_s, factor in zip(self.owed_s, self.free_at_s, self.factors, strict=True)
        ]


class Receivers:
    """The decode workers of one fingerprint, as columns."""

    __slots__ = (
        "batches",
        "ids",
        "joined_s",
        "least_room_tokens",
        "least_tightest_s",
        "room_tokens",
        "slots",
        "tightest_s",
        "token_s",
        "views",
    )

    def __init__(self, pool: PoolForecast, views: list[WorkerView]) -> None:
        self.views = views
        self.ids = [view.record.worker_id for view in views]
        self.slots = {worker_id: slot for slot, worker_id in enumerate(self.ids)}
        self.batches: list[Batch] = [_NOBODY] * len(views)
        self.joined_s = [0.0] * len(views)
        self.token_s = [0.0] * len(views)
        self.room_tokens = [0.0] * len(views)
        self.tightest_s = [math.inf] * len(views)
        self.least_room_tokens, self.least_tightest_s = 0.0, math.inf  # of the columns above
        for slot, view in enumerate(views):
            self.put(pool, slot, view)

    def put(self, pool: PoolForecast, slot: int, view: WorkerView) -> None:
        """Take over what a worker looks like."""
        self.views[slot] = view
        batch = self.batches[slot] = pool.batch(view)
        self.joined_s[slot], self.token_s[slot] = batch.joined_s, batch.token_s
        self.least_room_tokens = _put(self.room_tokens, slot, batch.room_tokens, self.least_room_tokens)
        tightest_s = math.inf if view.tightest_tpot_s is None else view.tightest_tpot_s
        self.least_tightest_s = _put(self.tightest_s, slot, tightest_s, self.least_tightest_s)


class Group:
    """The workers of one fingerprint."""

    __slots__ = ("receivers", "senders")

    def __init__(self, senders: Senders, receivers: Receivers) -> None:
        self.senders, self.receivers = senders, receivers


class Roster:
    """All and only the workers of the latest view that take work, in groups; `of` brings it up to a view."""

    def __init__(self, pools: Mapping[Role, PoolForecast]) -> None:
        """Take the costs of both roles."""
        self._pools = pools
        self._workers: tuple[WorkerView, ...] = ()  # as of the latest view
        self._places: list[tuple[Senders | Receivers, int] | None] = []  # where each of them stands; None: it drains
        self.groups: list[Group] = []  # in order of the least id of a worker
        self.num_senders = 0
        self.num_receivers = 0

    def of(self, cluster: ClusterView) -> Roster:
        """Bring the columns up to a view and return them; cheap where workers are the same objects."""
        workers, known = cluster.workers, self._workers
        if workers is known:
            return self
        if len(workers) != len(known) or not self._take_over(workers, known):
            self._arrange(workers)
        self._workers = workers
        return self

    def _take_over(self, workers: tuple[WorkerView, ...], known: tuple[WorkerView, ...]) -> bool:
        """Work out anew what changed; False when it is more than load."""
        changed = list(compress(range(len(workers)), map(is_not, workers, known)))
        for i in changed:
            if not _is_same_member(workers[i], known[i]):
                return False
        for i in changed:
            place = self._places[i]
            if place is not None:
                side, slot = place
                side.put(self._pools[workers[i].record.role], slot, workers[i])
        return True

    def _arrange(self, workers: tuple[WorkerView, ...]) -> None:
        members: dict[Fingerprint, tuple[list[WorkerView], list[WorkerView]]] = {}
        there = [worker for worker in workers if not worker.state.draining]
        for worker in sorted(there, key=lambda w: w.record.worker_id):
            sides = members.setdefault(worker.hello.fingerprint, ([], []))
            sides[0 if worker.record.role is Role.PREFILL else 1].append(worker)
        self.groups = [
            Group(Senders(self._pools[Role.PREFILL], senders), Receivers(self._pools[Role.DECODE], receivers))
            for senders, receivers in members.values()
        ]
        self.num_senders = sum(len(group.senders.ids) for group in self.groups)
        self.num_receivers = sum(len(group.receivers.ids) for group in self.groups)
        stands = {
            (role, worker_id): (side, slot)
            for group in self.groups
            for role, side in ((Role.PREFILL, group.senders), (Role.DECODE, group.receivers))
            for worker_id, slot in side.slots.items()
        }
        self._places = [None if w.state.draining else stands[w.record.role, w.record.worker_id] for w in workers]


def _put(column: list[float], slot: int, value: float, least: float) -> float:
    """Write a value into a column whose least was `least`; return what is its least then."""
    before, column[slot] = column[slot], value
    if value <= least:
        return value
    return min(column) if before == least else least


def _is_same_member(worker: WorkerView, before: WorkerView) -> bool:
    if worker.state.draining is not before.state.draining:
        return False
    if worker.record is not before.record and worker.record != before.record:
        return False
    return worker.hello is before.hello or worker.hello == before.hello
