"""A baseline policy: draw two workers and take the one with fewer requests.

Owns the draw. With two candidates the longest queue is exponentially shorter than with one (Mitzenmacher, 2001), and
no state has to be fresh on more than two workers. It knows neither lengths nor costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from core.policy.fallback import NO_PAIR, Alone, without_pair
from core.policy.pairing import least
from core.policy.prediction import sequences
from core.policy.protocol import Candidates
from core.types import ClusterView, Rejection, RequestShape, Route, WorkerView

_DRAW_BYTES: Final = 8  # of the hash of a request's id, for one draw


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """Draws two decode workers by the request's id and takes the one with fewer requests, and so a prefill worker."""

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Route | Rejection:
        """Place one request; see Policy."""
        workers = Candidates.of(cluster)
        case = without_pair(request, workers)
        if isinstance(case, Rejection):
            return case
        draws = _draws(request.request_id)
        if case is not None:
            return _whole(case, draws)
        sending = {p.hello.fingerprint for p in workers.prefill}
        paired = [d for d in workers.decode if d.hello.fingerprint in sending]
        if not paired:
            return _whole(Alone(workers.decode, NO_PAIR), draws)
        decode = least(_two(paired, draws[:2]), sequences)
        fingerprint = next(d.hello.fingerprint for d in paired if d.record.worker_id == decode)
        fitting = (p for p in workers.prefill if p.hello.fingerprint == fingerprint)
        return Route(decode, least(_two(fitting, draws[2:]), sequences), "the less loaded of two")


def _whole(case: Alone, draws: tuple[int, ...]) -> Route:
    return Route(least(_two(case.workers, draws[:2]), sequences), None, case.reason)


def _draws(request_id: str) -> tuple[int, ...]:
    """Make four independent numbers of an id; the request is the only source of randomness."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=4 * _DRAW_BYTES).digest()
    return tuple(int.from_bytes(digest[i : i + _DRAW_BYTES]) for i in range(0, len(digest), _DRAW_BYTES))


def _two(workers: Iterable[WorkerView], draws: tuple[int, ...]) -> tuple[WorkerView, ...]:
    """Draw two unlike workers, or the only one there is."""
    ordered = sorted(workers, key=lambda worker: worker.record.worker_id)
    if len(ordered) < 2:
        return tuple(ordered)
    first, second = draws[0] % len(ordered), draws[1] % (len(ordered) - 1)
    return ordered[first], ordered[second + (second >= first)]  # the second is any but the first
