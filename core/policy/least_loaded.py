"""A baseline policy: send a request where the fewest are, by count alone.

Owns the count. It knows neither lengths nor costs, so that policies which do can be compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.policy.fallback import NO_PAIR, Alone, without_pair
from core.policy.pairing import least, least_pair
from core.policy.prediction import sequences
from core.policy.protocol import Candidates
from core.types import ClusterView, Rejection, RequestShape, Route


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """Picks the pair of equal fingerprints with the fewest requests; ties go to the lesser ids."""

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Route | Rejection:
        """Place one request; see Policy."""
        workers = Candidates.of(cluster)
        case = without_pair(request, workers)
        if isinstance(case, Rejection):
            return case
        if case is not None:
            return _whole(case)
        pair = least_pair(workers, sequences, sequences)
        if pair is None:
            return _whole(Alone(workers.decode, NO_PAIR))
        return Route(decode=pair[0], prefill=pair[1], reason="least loaded")


def _whole(case: Alone) -> Route:
    return Route(decode=least(case.workers, sequences), prefill=None, reason=case.reason)
