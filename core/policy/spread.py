"""The blind baselines: spread requests evenly without a look at any load, by chance or in turn.

Owns nothing but the number that picks: a hash of the request id, or the request's place in its router's sequence.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from core.policy.fallback import NO_PAIR, Alone, without_pair
from core.policy.protocol import Candidates
from core.types import ClusterView, Rejection, RequestShape, Route, WorkerView


@dataclass(frozen=True, slots=True)
class Spread:
    """Picks any compatible pair with equal chance; the request id is the only source of randomness."""

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Route | Rejection:
        """Place one request; see Policy."""
        workers = Candidates.of(cluster)
        draw = zlib.crc32(request.request_id.encode())
        case = without_pair(request, workers)
        if isinstance(case, Rejection):
            return case
        if case is not None:
            return _whole(case, draw)
        pairs = sorted(
            (d.record.worker_id, p.record.worker_id)
            for d in workers.decode
            for p in workers.prefill
            if d.hello.fingerprint == p.hello.fingerprint
        )
        if not pairs:
            return _whole(Alone(workers.decode, NO_PAIR), draw)
        decode, prefill = pairs[draw % len(pairs)]
        return Route(decode, prefill, "random")


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Picks each decode worker once before any of them again, and so each prefill worker that fits."""

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Route | Rejection:
        """Place one request; see Policy."""
        workers = Candidates.of(cluster)
        turn = request.sequence
        case = without_pair(request, workers)
        if isinstance(case, Rejection):
            return case
        if case is not None:
            return _whole(case, turn)
        sending = {p.hello.fingerprint for p in workers.prefill}
        paired = {d.record.worker_id: d for d in workers.decode if d.hello.fingerprint in sending}
        if not paired:
            return _whole(Alone(workers.decode, NO_PAIR), turn)
        ids = sorted(paired)
        decode_id = ids[turn % len(ids)]
        fingerprint = paired[decode_id].hello.fingerprint
        alike = [i for i in ids if paired[i].hello.fingerprint == fingerprint]
        # Counted among the requests of its fingerprint alone, so that these take their prefill workers in turn too.
        turn_alike = turn // len(ids) * len(alike) + alike.index(decode_id)
        fitting = tuple(p for p in workers.prefill if p.hello.fingerprint == fingerprint)
        return Route(decode_id, _nth(fitting, turn_alike), "round robin")


def _whole(case: Alone, number: int) -> Route:
    return Route(_nth(case.workers, number), None, case.reason)


def _nth(workers: tuple[WorkerView, ...], number: int) -> str:
    ids = sorted(w.record.worker_id for w in workers)
    return ids[number % len(ids)]
