"""The cluster as a sequence of events tells it, and the events that tell of a view.

Owns both directions: what changed between two views, and the view after such changes. Must not know where events are
kept.
"""

from __future__ import annotations

from collections.abc import Iterator

from core.events import (
    Event,
    HeldChanged,
    Load,
    LogOpened,
    Skipped,
    WorkerJoined,
    WorkerLeft,
    WorkerLoaded,
    own_counts_of,
    state_of,
)
from core.types import ClusterView, HeldWork, WorkerView


def load_of(worker: WorkerView) -> Load:
    """Take out what changes of a worker, in the order of LOAD_FIELDS."""
    state, speed = worker.state, worker.speed
    return (
        state.num_running,
        state.num_waiting,
        state.kv_blocks_used,
        state.kv_blocks_total,
        state.step_s,
        state.draining,
        state.step_prompt_tokens,
        state.step_seqs,
        worker.inflight_requests,
        worker.inflight_prompt_tokens,
        worker.inflight_prompts,
        worker.inflight_prompt_pairs,
        worker.inflight_context_tokens,
        worker.prompting_since_s,
        worker.tightest_tpot_s,
        speed.prefill_factor,
        speed.decode_factor,
        speed.prefill_spread,
        speed.decode_spread,
    )


class ViewDeltas:
    """Tells of each view what differs from the one before; cheap where workers are the same objects."""

    def __init__(self) -> None:
        self._told: dict[str, WorkerView] = {}  # all and only the workers of the view before, by id
        self._view = ClusterView()

    def forget(self) -> None:
        """Tell of everything again next time."""
        self._told = {}
        self._view = ClusterView()

    def next(self, view: ClusterView) -> Iterator[WorkerJoined | WorkerLoaded | WorkerLeft | HeldChanged]:
        """Yield what leads from the view before to this one; take all of it before the next call."""
        if view is self._view:
            return
        before, self._view = self._view, view
        if view.held != before.held or view.promised != before.promised:
            yield HeldChanged(view.held, view.promised)
        told = self._told
        for worker in view.workers:
            worker_id = worker.record.worker_id
            known = told.get(worker_id)
            if known is worker:
                continue
            told[worker_id] = worker
            if known is None or known.record != worker.record or known.hello != worker.hello:
                yield WorkerJoined(worker.record, worker.hello)
            elif load_of(known) == load_of(worker):
                continue
            yield WorkerLoaded(worker_id, load_of(worker))
        if len(told) != len(view.workers):
            there = {worker.record.worker_id for worker in view.workers}
            for worker_id in [told_id for told_id in told if told_id not in there]:
                del told[worker_id]
                yield WorkerLeft(worker_id)


class ClusterState:
    """Follows events."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerView] = {}  # all and only the workers that take work, by id
        self._held = HeldChanged(HeldWork(), HeldWork())
        self._view: ClusterView | None = None  # None: something changed since it was made

    def apply(self, event: Event) -> None:
        """Take one event over; a decision changes nothing.

        Raises ValueError for an event of a worker that has not joined.
        """
        match event:
            case WorkerLoaded(worker_id, load):
                worker = self._known(worker_id)
                self._workers[worker_id] = WorkerView(
                    worker.record, worker.hello, state_of(load), **own_counts_of(load)
                )
            case WorkerJoined(record, hello):
                self._workers[record.worker_id] = WorkerView(record, hello)
            case WorkerLeft(worker_id):
                self._known(worker_id)
                del self._workers[worker_id]
            case HeldChanged():
                self._held = event
            case LogOpened() | Skipped():
                self._workers, self._held = {}, HeldChanged(HeldWork(), HeldWork())
            case _:
                return
        self._view = None

    def view(self) -> ClusterView:
        """Return the cluster as it is after the events so far."""
        if self._view is None:
            workers = tuple(self._workers[worker_id] for worker_id in sorted(self._workers))
            self._view = ClusterView(workers, self._held.held, self._held.promised)
        return self._view

    def _known(self, worker_id: str) -> WorkerView:
        worker = self._workers.get(worker_id)
        if worker is None:
            raise ValueError(f"worker {worker_id!r} has not joined")
        return worker
