"""The full gear: the router's own policies, object for object, over the engines of the compiled kernel.

Owns the cluster's view as a live router would have it, and the acting on decisions. A policy sees each worker's last
frame, as old as `Routing.state_delay_s` says, and what the router has itself in flight; it never sees output lengths.
Must not know how engines proceed. What a lost worker held is routed again by the rules of the search gear.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import numpy as np

from core.policy.context import ClassTarget, LinkFacts, PolicyContext, PoolFacts
from core.policy.protocol import Policy
from core.policy.registry import policy_named
from core.types import (
    ClusterView,
    Fingerprint,
    RequestShape,
    Role,
    Route,
    WorkerHello,
    WorkerRecord,
    WorkerState,
    WorkerView,
)
from sim.cluster import Admission, ClusterSpec, Mode, PoolSpec
from sim.kernel.run import advance
from sim.kernel.state import NOBODY, State
from sim.outcome import Outcome, Target
from sim.placing import place_and_advance
from sim.simulate import FOREVER_S, outcome_of, simulate, start
from sim.workload import Workload

_MAX_MODEL_LEN: Final = 1 << 30  # tokens; the kernel refuses by KV blocks

_Frame = tuple[int, int, int, float]  # running, waiting, KV blocks, step_s
_Own = tuple[int, int, int, float, int, float | None]  # requests, prompts, their tokens and pairs, context, since_s


def simulate_with_policy(
    cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], policy: Policy, *, seed: int = 0
) -> Outcome:
    """Run the workload through the cluster with every arrival placed by `policy`.

    Of `cluster.routing` only the order of the queues and the age of states count here; a policy made with `context_of`
    keeps the rest. What the policy rejects is refused for good. Equal arguments give equal outcomes.
    """
    state = start(cluster, workload, targets, seed=seed)
    router = _Router(cluster, state, targets, policy)
    arrived, prompts = workload.arrived_s.tolist(), workload.prompt_tokens.tolist()
    classes, delay_s = workload.classes().tolist(), cluster.routing.state_delay_s
    looks = deque(arrived_s - delay_s for arrived_s in arrived)  # when the engines were as a decision sees them
    reached_s = -math.inf
    for request, now_s in enumerate(arrived):
        while looks and looks[0] <= now_s:
            reached_s = _reach(state, reached_s, looks.popleft())
            router.look()
        reached_s = _reach(state, reached_s, now_s)
        prefill, decode = router.place(request, prompts[request], classes[request], now_s)
        following = arrived[request + 1] if request + 1 < len(arrived) else FOREVER_S
        reached_s = max(now_s, min(looks[0], following) if looks else following)
        place_and_advance(state, request, prefill, decode, now_s, reached_s)
    return outcome_of(cluster, state)


def with_predicting_policy(
    cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0
) -> Outcome:
    """Run the full gear with the policy that predicts and admits as `cluster.routing` says; called like simulate."""
    policy = policy_named("slo-aware", context_of(cluster, targets))
    return simulate_with_policy(cluster, workload, targets, policy, seed=seed)


def gears_differ(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, skip: int = 0) -> float:
    """Return attainment by the search gear less that by the router's own policy, of the class where it is most."""
    search = simulate(cluster, workload, targets).attainment(targets, skip=skip)
    full = with_predicting_policy(cluster, workload, targets).attainment(targets, skip=skip)
    return max((a - b for a, b in zip(search, full, strict=True)), key=abs, default=0.0)


def context_of(cluster: ClusterSpec, targets: tuple[Target, ...]) -> PolicyContext:
    """Tell policies what a router of this cluster would be told."""
    link, routing = cluster.link, cluster.routing
    return PolicyContext(
        pools={
            Role.PREFILL: _facts(cluster, cluster.prefill or cluster.decode),
            Role.DECODE: _facts(cluster, cluster.decode),
        },
        targets={target.name: ClassTarget(target.ttft_s, target.tpot_s) for target in targets},
        link=LinkFacts(
            latency_s=link.latency_s,
            s_per_token=link.kv_bytes_per_token / link.bytes_per_s,
            tail_share=1.0 / link.layers if link.layerwise else 1.0,
        ),
        request_overhead_s=cluster.request_overhead_s,
        handover_overhead_s=cluster.handover_overhead_s,
        first_token_from_prefill=cluster.first_token_from_prefill,
        whole_below_tokens=routing.whole_below_tokens,
        overflow=routing.overflow,
        admit_by_ttft=routing.admission is not Admission.OFF,
        admit_by_tpot=routing.admission is Admission.TTFT_AND_TPOT,
    )


def _facts(cluster: ClusterSpec, pool: PoolSpec) -> PoolFacts:
    return PoolFacts(
        cost=pool.cost,
        max_num_seqs=pool.max_num_seqs,
        max_num_batched_tokens=pool.max_num_batched_tokens,
        chunked=pool.chunked and cluster.mode is not Mode.ONE_POOL,
        stages=pool.pipeline_parallel,
    )


def _reach(state: State, reached_s: float, until_s: float) -> float:
    """Let time pass up to `until_s`, if it has not; return the time reached."""
    if until_s <= reached_s:
        return reached_s
    advance(state, until_s)
    return until_s


class _Router:
    """What a router of the simulated cluster knows, and its decisions."""

    def __init__(self, cluster: ClusterSpec, state: State, targets: tuple[Target, ...], policy: Policy) -> None:
        rows = np.asarray(state.workers)[: cluster.num_workers]  # views: the kernel writes them on
        self._said = rows[["running", "waiting", "blocks", "step_s"]]
        self._counted = rows[["legs", "owed_requests", "owed_tokens", "owed_pairs", "load_context"]]
        self._frame_s, self._alive = rows["frame_s"], rows["alive"]
        self._policy = policy
        self._classes = [target.name for target in targets]
        self._fixed = _identities(cluster, state)  # by worker of the kernel
        self._number = {record.worker_id: i for i, (record, _) in enumerate(self._fixed)}
        # Ids have equally many digits: by id, decode workers come first.
        self._order = sorted(range(len(self._fixed)), key=lambda i: self._fixed[i][0].worker_id)
        self._blocks = [hello.num_kv_blocks for _, hello in self._fixed]
        count = len(self._fixed)
        self._frames: deque[list[_Frame]] = deque()  # as seen, for decisions to come
        self._seen: list[tuple[_Frame, _Own] | None] = [None] * count  # what the views were made of
        self._views = [WorkerView(record, hello) for record, hello in self._fixed]
        self._sent_prompts = [0] * count
        self._done_prompts = [0] * count
        self._since_s: list[float | None] = [None] * count

    def look(self) -> None:
        """Keep the workers' frames as they are, for the next decision that has none."""
        self._frames.append(self._said.tolist())

    def place(self, request: int, prompt_tokens: int, slo_class: int, now_s: float) -> tuple[int, int]:
        """Ask the policy; return the kernel's numbers of prefill and decode worker, NOBODY for none."""
        view = self._view(self._frames.popleft())
        shape = RequestShape(str(request), prompt_tokens, None, self._classes[slo_class], None, request)
        decision = self._policy.decide(shape, view, now_s)
        if not isinstance(decision, Route):
            return NOBODY, NOBODY
        decode = self._number[decision.decode]
        prefill = NOBODY if decision.prefill is None else self._number[decision.prefill]
        first = decode if prefill == NOBODY else prefill
        self._sent_prompts[first] += 1
        if self._since_s[first] is None:
            self._since_s[first] = now_s
        return prefill, decode

    def _view(self, frames: list[_Frame]) -> ClusterView:
        own = self._own_counts()
        for i, seen in enumerate(zip(frames, own, strict=True)):
            if seen != self._seen[i]:
                self._seen[i] = seen
                self._views[i] = self._made(i, *seen)
        alive = self._alive.tolist()
        return ClusterView(tuple([self._views[i] for i in self._order if alive[i]]))

    def _own_counts(self) -> list[_Own]:
        counted, frame_s, since_s = self._counted.tolist(), self._frame_s.tolist(), self._since_s
        for i, (_, prompts, _, _, _) in enumerate(counted):
            done = self._sent_prompts[i] - prompts
            if not prompts:
                since_s[i] = None
            elif since_s[i] is None or done != self._done_prompts[i]:
                since_s[i] = frame_s[i]  # the step that ended then has done a prompt; the next is at work from there on
            self._done_prompts[i] = done
        return [(*counts, since) for counts, since in zip(counted, since_s, strict=True)]

    def _made(self, worker: int, frame: _Frame, own: _Own) -> WorkerView:
        running, waiting, blocks, step_s = frame
        legs, prompts, tokens, pairs, context, since_s = own
        record, hello = self._fixed[worker]
        state = WorkerState(running, waiting, blocks, self._blocks[worker], step_s)
        return WorkerView(record, hello, state, legs, tokens, prompts, pairs, context, since_s)


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
