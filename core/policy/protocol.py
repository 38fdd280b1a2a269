"""The seam between whoever holds a request and the policy that places it.

Owns the Protocol and the split of a cluster that every policy needs. Must not know how a route is taken.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from core.types import ClusterView, Decision, RequestShape, Role, Route, WorkerView


class Policy(Protocol):
    """Decides where a request goes; pure, total and deterministic."""

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Decision:
        """Place one request on `cluster` as it looks at `now_s`, a monotonic time.

        Equal arguments give equal answers whatever the order of the workers. Never raises, never pairs workers
        of unequal fingerprints, never names a worker that is draining or not in `cluster`.
        """
        ...


@runtime_checkable
class PredictingPolicy(Policy, Protocol):
    """A policy that can say what it expected of the routes it did not take."""

    def options(self, request: RequestShape, cluster: ClusterView, now_s: float, *, limit: int) -> tuple[Route, ...]:
        """List the routes that were open to the request, best first, each with its forecast; at most `limit`."""
        ...


@dataclass(frozen=True, slots=True)
class Candidates:
    """All and only the workers that take new work, by role."""

    prefill: tuple[WorkerView, ...]
    decode: tuple[WorkerView, ...]

    @classmethod
    def of(cls, cluster: ClusterView) -> Candidates:
        """Leave out the draining workers and split the rest by role."""
        prefill: list[WorkerView] = []
        decode: list[WorkerView] = []
        for worker in cluster.workers:
            if not worker.state.draining:
                (prefill if worker.record.role is Role.PREFILL else decode).append(worker)
        return cls(tuple(prefill), tuple(decode))

    @property
    def has_pair(self) -> bool:
        """Some prefill and some decode worker have equal fingerprints."""
        receivers = {w.hello.fingerprint for w in self.decode}
        return any(w.hello.fingerprint in receivers for w in self.prefill)

    @property
    def num_pairs(self) -> int:
        """Count the pairs of a prefill and a decode worker of equal fingerprint."""
        receivers = Counter(w.hello.fingerprint for w in self.decode)
        return sum(receivers[w.hello.fingerprint] for w in self.prefill)
