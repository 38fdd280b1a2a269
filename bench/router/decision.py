"""The time of one decision of a policy in a large cluster whose view changes from one decision to the next.

Owns the cluster and its life: requests come, go where the policy says, and end. Must not know any policy.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.router.site import router_spec
from core.errors import BatonError
from core.policy.registry import policy_named
from core.types import (
    ClusterView,
    Fingerprint,
    Margins,
    RequestShape,
    Role,
    Route,
    WorkerHello,
    WorkerRecord,
    WorkerState,
    WorkerView,
)

_WARM: Final = 2_000  # decisions before the first that counts
_COUNTED: Final = 20_000
_RUNNING_PER_WORKER: Final = 8
_CACHED_ON: Final = 4  # workers of each role that know the beginning of a prompt
_SEED: Final = 7
_BLOCKS: Final = 20_000


@dataclass(frozen=True, slots=True)
class DecisionTimes:
    """What one policy took."""

    policy: str
    p50_us: float
    p99_us: float
    mean_us: float
    rejected: int
    decided: int


class Cluster:
    """Workers of both roles, and the requests that run on them."""

    def __init__(self, workers_per_role: int) -> None:
        self._views = {w.record.worker_id: w for role in Role for w in _workers(role, workers_per_role)}
        self._running: deque[tuple[Route, int]] = deque()
        self._capacity = workers_per_role * _RUNNING_PER_WORKER

    def view(self) -> ClusterView:
        """Return the cluster as a policy sees it, workers in order of id."""
        return ClusterView(tuple(self._views[worker_id] for worker_id in sorted(self._views)))

    def take(self, route: Route, prompt_tokens: int, now_s: float) -> None:
        """Let a request begin, its prompt be computed before the next comes, and the oldest end when there are many."""
        self._running.append((route, prompt_tokens))
        self._add(route.decode, 1, prompt_tokens)
        if route.prefill is not None:
            self._owe(route.prefill, prompt_tokens, now_s)
        if len(self._running) > self._capacity:
            ended, tokens = self._running.popleft()
            self._add(ended.decode, -1, -tokens)
        if len(self._running) > len(self._views) // 4:
            done, tokens = self._running[-len(self._views) // 4]
            if done.prefill is not None:
                self._owe(done.prefill, -tokens, now_s)

    def _add(self, worker_id: str, requests: int, tokens: int) -> None:
        worker = self._views[worker_id]
        running = worker.inflight_requests + requests
        state = replace(worker.state, num_running=running, kv_blocks_used=running * 64, step_seqs=running)
        self._views[worker_id] = replace(
            worker,
            state=state,
            inflight_requests=running,
            inflight_context_tokens=worker.inflight_context_tokens + tokens,
        )

    def _owe(self, worker_id: str, tokens: int, now_s: float) -> None:
        worker = self._views[worker_id]
        prompts = max(0, worker.inflight_prompts + (1 if tokens > 0 else -1))
        self._views[worker_id] = replace(
            worker,
            inflight_requests=prompts,
            inflight_prompts=prompts,
            inflight_prompt_tokens=max(0, worker.inflight_prompt_tokens + tokens),
            inflight_prompt_pairs=max(0.0, worker.inflight_prompt_pairs + tokens * abs(tokens) / 2),
            prompting_since_s=now_s if prompts else None,
        )


def decisions(policy: str, workers_per_role: int, *, warm: int = _WARM, counted: int = _COUNTED) -> DecisionTimes:
    """Let one policy decide many times; time each decision alone, without what changes the view.

    Raises ConfigError for a policy that does not exist.
    """
    context = router_spec("", Path(), policy=policy).policy_context
    decide = policy_named(policy, context).decide
    cluster, rng = Cluster(workers_per_role), random.Random(_SEED)
    times_ns: list[int] = []
    rejected, now_s = 0, 1000.0
    for number in range(warm + counted):
        now_s += 1e-3
        request, view = _request(number, workers_per_role, rng), cluster.view()
        began_ns = time.perf_counter_ns()
        decision = decide(request, view, now_s)
        times_ns.append(time.perf_counter_ns() - began_ns)
        if isinstance(decision, Route):
            cluster.take(decision, request.prompt_tokens, now_s)
        else:
            rejected += 1
    ordered = sorted(times_ns[warm:])
    if rejected == warm + counted:
        raise BatonError(f"{policy} placed none of {rejected} requests: there is nothing to time")
    p50, p99 = (ordered[int(share * len(ordered))] / 1e3 for share in (0.5, 0.99))
    return DecisionTimes(policy, p50, p99, statistics.fmean(ordered) / 1e3, rejected, warm + counted)


def decisions_report(measured: Sequence[DecisionTimes], workers_per_role: int) -> Iterator[str]:
    """Yield the table."""
    workers = f"{workers_per_role} prefill and {workers_per_role} decode workers"
    yield f"{workers}, {_COUNTED:,} decisions, the view changed before each:\n"
    yield "| policy | p50, us | p99, us | mean, us | refused |"
    yield "|---|---|---|---|---|"
    for m in measured:
        yield f"| {m.policy} | {m.p50_us:.1f} | {m.p99_us:.1f} | {m.mean_us:.1f} | {m.rejected / m.decided:.1%} |"


def _workers(role: Role, count: int) -> Iterator[WorkerView]:
    fingerprint = Fingerprint("mock", "m", "t", "bfloat16", "auto", 16, "mock", 1, 1, "")
    for number in range(count):
        name = f"{role.value}-{number}"
        yield WorkerView(
            record=WorkerRecord(name, role, 1, "127.0.0.1:1", "n"),
            hello=WorkerHello(name, role, 1, "m", 1 << 15, "127.0.0.1:2", _BLOCKS, fingerprint),
            state=WorkerState(kv_blocks_total=_BLOCKS, step_s=0.01),
        )


_MARGINS: Final = Margins(-1.0, 1.5, -1.5, 2.5, -1.0, 1.0)  # as a live router tells them with each request


def _request(number: int, workers_per_role: int, rng: random.Random) -> RequestShape:
    """Make a request of any length whose beginning some workers know."""
    tokens = rng.randrange(100, 4000)
    knowing = rng.sample(range(workers_per_role), min(_CACHED_ON, workers_per_role))
    cached = sorted((f"{role.value}-{each}", tokens // 2) for role in Role for each in knowing)
    shape = RequestShape(f"r{number}", tokens, 256, "interactive", sequence=number, tenant="a", cached=tuple(cached))
    return shape._replace(margins=_MARGINS)
