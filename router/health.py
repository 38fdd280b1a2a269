"""Whether this router can serve, and how well.

Owns the readiness rule: not ready until some compatible pair was seen, then ready while any worker takes requests. With
one pool there are no pairs: any of its workers makes it ready. Must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from core.policy.protocol import Candidates
from core.types import ClusterView


@dataclass(frozen=True, slots=True)
class Health:
    """One answer to the question; `status` is "ok", "degraded", "starting", "unavailable" or "stopping"."""

    status: str
    reason: str
    num_prefill: int
    num_decode: int

    @property
    def can_serve(self) -> bool:
        """Requests that come now have somewhere to go."""
        return self.status in ("ok", "degraded")


class Readiness:
    """Remembers whether a compatible pair was ever there; that alone makes a start complete.

    With `one_pool` there are no prefill workers, and none is missed.
    """

    def __init__(self, view: Callable[[], ClusterView], *, one_pool: bool = False) -> None:
        self._view = view
        self._one_pool = one_pool
        self._was_ready = False
        self.stopping = False

    def check(self) -> Health:
        """Look at the workers connected now."""
        workers = Candidates.of(self._view())
        status, reason = self._judge(workers)
        return Health(status, reason, len(workers.prefill), len(workers.decode))

    def _judge(self, workers: Candidates) -> tuple[str, str]:
        if self.stopping:
            return "stopping", "the router is shutting down"
        if workers.has_pair:
            self._was_ready = True
            return "ok", "a prefill and a decode worker of equal fingerprint are connected"
        if self._one_pool and workers.decode:
            self._was_ready = True
            return "ok", "a worker of the one pool is connected"
        missing = _missing(workers)
        if not workers.prefill and not workers.decode:
            return ("unavailable" if self._was_ready else "starting"), missing
        if self._was_ready:
            return "degraded", f"{missing}; requests run whole on one worker"
        return "starting", missing


def _missing(workers: Candidates) -> str:
    if not workers.prefill and not workers.decode:
        return "no worker is connected that takes requests"
    if not workers.prefill:
        return "no prefill worker is connected that takes requests"
    if not workers.decode:
        return "no decode worker is connected that takes requests"
    ours, theirs = workers.prefill[0].hello, workers.decode[0].hello
    fields = ", ".join(ours.fingerprint.differences(theirs.fingerprint))
    return f"no pair of equal fingerprints: {ours.worker_id} and {theirs.worker_id} differ in {fields}"
