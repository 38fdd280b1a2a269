"""A baseline policy: send a request where most of its prompt is believed to be cached, unless too much waits there.

Owns the bound on load. What is cached where is told with the request (RequestShape.cached); it knows no costs, so it
cannot weigh a hit against a queue as a policy that predicts can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from core.policy.fallback import NO_PAIR, Alone, without_pair
from core.policy.pairing import Score, least, least_pair
from core.policy.prediction import sequences
from core.policy.protocol import Candidates
from core.types import ClusterView, Rejection, RequestShape, Route, WorkerView

# A worker may have so many times the mean number of requests before prefixes count for nothing there: consistent
# hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018) at the factor that HAProxy advises at least.
LOAD_FACTOR: Final = 1.25
_REQUESTS: Final = 1e-6  # the weight of one request beside one cached token: it only breaks ties
_NOT_HERE: Final = 1e9  # beyond the cached tokens of every worker within bounds


@dataclass(frozen=True, slots=True)
class PrefixAffinity:
    """Picks the workers with the longest cached prefix among those within the bound, then the fewest requests."""

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Route | Rejection:
        """Place one request; see Policy."""
        workers, cached = Candidates.of(cluster), dict(request.cached)
        case = without_pair(request, workers)
        if isinstance(case, Rejection):
            return case
        if case is not None:
            return _whole(case, cached)
        pair = least_pair(workers, _score(workers.prefill, cached), _score(workers.decode, cached))
        if pair is None:
            return _whole(Alone(workers.decode, NO_PAIR), cached)
        hit = cached.get(pair[1], 0) or cached.get(pair[0], 0)
        return Route(*pair, "longest cached prefix" if hit else "least loaded")


def _whole(case: Alone, cached: Mapping[str, int]) -> Route:
    return Route(least(case.workers, _score(case.workers, cached)), None, case.reason)


def _score(workers: tuple[WorkerView, ...], cached: Mapping[str, int]) -> Score:
    """Score one role: cached tokens first where the bound allows, requests in all else."""
    # With the request itself, and rounded up: some worker is always within the bound.
    most = math.ceil(LOAD_FACTOR * (sum(map(sequences, workers)) + 1) / max(1, len(workers)))

    def score(worker: WorkerView) -> float:
        count = sequences(worker)
        if count + 1 > most:
            return _NOT_HERE + count
        return _REQUESTS * count - cached.get(worker.record.worker_id, 0)

    return score
