"""The baseline policy: spread requests evenly and blindly, by a hash of the request id.

Owns nothing but the draw. It looks at no load, so that every other policy can be compared with it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from core.policy.least_work import NO_PAIR, RETRY_AFTER_S
from core.policy.protocol import Candidates
from core.types import ClusterView, Rejection, RequestShape, Route, WorkerView


@dataclass(frozen=True, slots=True)
class Spread:
    """Picks any compatible pair with equal chance; the request id is the only source of randomness."""

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Route | Rejection:
        """Place one request; see Policy."""
        workers = Candidates.of(cluster)
        alone = workers.decode or workers.prefill
        if not alone:
            return Rejection("no_worker", "no worker is connected that takes requests", RETRY_AFTER_S)
        draw = zlib.crc32(request.request_id.encode())
        if not workers.decode:
            return Route(_pick(draw, alone), None, "no decode worker")
        if request.whole_only is not None:
            return Route(_pick(draw, alone), None, request.whole_only)
        pairs = sorted(
            (d.record.worker_id, p.record.worker_id)
            for d in workers.decode
            for p in workers.prefill
            if d.hello.fingerprint == p.hello.fingerprint
        )
        if not pairs:
            return Route(_pick(draw, alone), None, NO_PAIR)
        decode, prefill = pairs[draw % len(pairs)]
        return Route(decode, prefill, "random")


def _pick(draw: int, workers: tuple[WorkerView, ...]) -> str:
    names = sorted(w.record.worker_id for w in workers)
    return names[draw % len(names)]
