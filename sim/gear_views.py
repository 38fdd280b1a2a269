"""The simulated cluster as a live router sees it: the workers' last frames, and its own legs in flight.

Owns the views that policies are shown. Must not decide, and knows no output lengths.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from core.policy.context import PolicyContext
from core.policy.correction import SpeedCorrection
from core.types import (
    ClusterView,
    Fingerprint,
    HeldWork,
    Role,
    WorkerHello,
    WorkerRecord,
    WorkerSpeed,
    WorkerState,
    WorkerView,
)
from sim.cluster import ClusterSpec
from sim.kernel.state import NOBODY, State

_MAX_MODEL_LEN: Final = 1 << 30  # tokens; the kernel refuses by KV blocks
_AS_PREDICTED: Final = WorkerSpeed()
_ROUNDING_S: Final = 1e-9  # times that differ by less are one

_Frame = tuple[int, int, int, float, int, int]  # running, waiting, KV blocks, step_s, its prompt tokens and sequences
# Requests, prompts, their tokens and pairs, context, when the oldest came to its turn, tightest TPOT target
_Own = tuple[int, int, int, float, int, float | None, float | None]


class Views:
    """Makes views of the kernel's workers; a worker's view is made anew only when something of it has changed."""

    def __init__(self, cluster: ClusterSpec, state: State, predicted_by: PolicyContext | None) -> None:
        """Take the state whose arrays the kernel will write on, and the costs that frames correct, if any."""
        rows = np.asarray(state.workers)[: cluster.num_workers]
        self._said = rows[["running", "waiting", "blocks", "step_s", "step_prompt_tokens", "step_seqs"]]
        self._counted = rows[["legs", "owed_requests", "owed_tokens", "owed_pairs", "load_context"]]
        self._frame_s, self._takes = rows["frame_s"], rows["takes"]
        self._fixed = _identities(cluster, state)  # by worker of the kernel
        self._number = {record.worker_id: i for i, (record, _) in enumerate(self._fixed)}
        # Ids have equally many digits: by id, decode workers come first.
        self._order = sorted(range(len(self._fixed)), key=lambda i: self._fixed[i][0].worker_id)
        pools = predicted_by.pools if predicted_by else {}
        costs = [facts.cost if (facts := pools.get(record.role)) else None for record, _ in self._fixed]
        self._corrections = [
            SpeedCorrection(cost, record.role) if cost else None
            for cost, (record, _) in zip(costs, self._fixed, strict=True)
        ]
        self._delay_s = cluster.routing.state_delay_s
        self._looks: deque[tuple[float, list[_Frame]]] = deque()  # with their times, for views to come
        self._seen: list[tuple[_Frame, _Own] | None] = [None] * len(self._fixed)  # what the views were made of
        self._views = [WorkerView(record, hello) for record, hello in self._fixed]
        self._sent_prompts = [0] * len(self._fixed)
        self._done_prompts = [0] * len(self._fixed)
        self._since_s: list[float | None] = [None] * len(self._fixed)
        self._tightest_s: list[float | None] = [None] * len(self._fixed)  # of what was sent since it was last idle

    def look(self, now_s: float) -> None:
        """Keep the workers' frames as they are, for the views that are made when they have become known."""
        self._looks.append((now_s, self._said.tolist()))

    def view(self, now_s: float, held: HeldWork, promised: HeldWork) -> ClusterView:
        """Show the workers that take work, as the router knows them at `now_s`."""
        own = self._own_counts()
        for i, seen in enumerate(zip(self._known(now_s), own, strict=True)):
            before = self._seen[i]
            if seen != before:
                self._seen[i] = seen
                self._views[i] = self._made(i, *seen, is_new_frame=before is None or seen[0] != before[0])
        takes = self._takes.tolist()
        return ClusterView(tuple([self._views[i] for i in self._order if takes[i]]), held, promised)

    @property
    def hellos(self) -> list[WorkerHello]:
        """Describe all workers, those that are gone included."""
        return [hello for _, hello in self._fixed]

    def numbers(self, prefill: str | None, decode: str) -> tuple[int, int]:
        """Return the kernel's numbers of a pair, NOBODY for no prefill worker."""
        return NOBODY if prefill is None else self._number[prefill], self._number[decode]

    def sent(self, prefill: int, decode: int, tpot_s: float, now_s: float) -> None:
        """Note where a request goes, and its TPOT target; `prefill` is NOBODY for a whole one."""
        worker = decode if prefill == NOBODY else prefill
        self._sent_prompts[worker] += 1
        if self._since_s[worker] is None:
            self._since_s[worker] = now_s
        tightest_s = self._tightest_s[decode]
        self._tightest_s[decode] = tpot_s if tightest_s is None else min(tightest_s, tpot_s)

    def _known(self, now_s: float) -> list[_Frame]:
        """Return the newest frames that are old enough to be known."""
        if self._delay_s == 0.0:
            frames: list[_Frame] = self._said.tolist()
            return frames
        known_s = now_s - self._delay_s + _ROUNDING_S
        while len(self._looks) > 1 and self._looks[1][0] <= known_s:
            self._looks.popleft()
        return self._looks[0][1]

    def _own_counts(self) -> list[_Own]:
        counted, frame_s, since_s = self._counted.tolist(), self._frame_s.tolist(), self._since_s
        for i, (legs, prompts, _, _, _) in enumerate(counted):
            if not legs:
                self._tightest_s[i] = None
            done = self._sent_prompts[i] - prompts
            if not prompts:
                since_s[i] = None
            elif since_s[i] is None or done != self._done_prompts[i]:
                since_s[i] = frame_s[i]  # the step that ended then has done a prompt; the next is at work from there on
            self._done_prompts[i] = done
        return [(*counts, *times) for counts, *times in zip(counted, since_s, self._tightest_s, strict=True)]

    def _made(self, worker: int, frame: _Frame, own: _Own, *, is_new_frame: bool) -> WorkerView:
        running, waiting, blocks, step_s, step_prompt_tokens, step_seqs = frame
        legs, prompts, tokens, pairs, context, since_s, tightest_s = own
        record, hello = self._fixed[worker]
        state = WorkerState(running, waiting, blocks, hello.num_kv_blocks, step_s, False, step_prompt_tokens, step_seqs)
        speed, correction = _AS_PREDICTED, self._corrections[worker]
        if correction is not None:
            if is_new_frame:
                correction.observe_step(state, hello.fingerprint.block_size)
            speed = correction.speed
        return WorkerView(record, hello, state, legs, tokens, prompts, pairs, context, since_s, tightest_s, speed)


def _identities(cluster: ClusterSpec, state: State) -> list[tuple[WorkerRecord, WorkerHello]]:
    """Name the kernel's workers; all have one fingerprint, for the planner pairs pools of unlike sizes too."""
    num_prefill = cluster.prefill.replicas if cluster.prefill else 0
    fingerprint = Fingerprint("simulated", "", "", "", "", cluster.block_size, "", 1, 1, "")
    digits = len(str(cluster.num_workers))
    found = []
    for i in range(cluster.num_workers):
        role = Role.PREFILL if i < num_prefill else Role.DECODE
        worker_id = f"{role.value}-{i if role is Role.PREFILL else i - num_prefill:0{digits}}"
        blocks = int(state.pools.kv_blocks[state.workers.pool[i]])
        hello = WorkerHello(worker_id, role, 1, "", _MAX_MODEL_LEN, "", blocks, fingerprint)
        found.append((WorkerRecord(worker_id, role, 1, "", ""), hello))
    return found
