"""The least pair of two workers of equal fingerprints, by scores that add up.

Owns the search over pairs. Must not know what a score means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from core.policy.protocol import Candidates
from core.types import Fingerprint, WorkerView

Score = Callable[[WorkerView], float]  # less is better
_Choice = tuple[float, str, WorkerView]  # score, worker id, worker; ids differ, so views are never compared


def least(workers: Iterable[WorkerView], score: Score) -> str:
    """Name the worker with the least score, of at least one; ties go to the lesser id."""
    return min((score(w), w.record.worker_id) for w in workers)[1]


def least_pair(workers: Candidates, prefill_score: Score, decode_score: Score) -> tuple[str, str] | None:
    """Find (decode, prefill) with the least sum of scores; None when no two have equal fingerprints."""
    senders = _choices(workers.prefill, prefill_score)
    receivers = _choices(workers.decode, decode_score)
    if not senders or not receivers:
        return None
    sender, receiver = min(senders), min(receivers)
    if sender[2].hello.fingerprint == receiver[2].hello.fingerprint:
        return receiver[1], sender[1]  # the sum is least where both parts are; the common case, without hashing
    best_senders = _least_by_fingerprint(senders)
    pairs = [
        (sent[0] + received[0], received[1], sent[1])
        for fingerprint, received in _least_by_fingerprint(receivers).items()
        if (sent := best_senders.get(fingerprint)) is not None
    ]
    return min(pairs)[1:] if pairs else None


def _choices(workers: Iterable[WorkerView], score: Score) -> list[_Choice]:
    return [(score(w), w.record.worker_id, w) for w in workers]


def _least_by_fingerprint(choices: Iterable[_Choice]) -> dict[Fingerprint, _Choice]:
    found: dict[Fingerprint, _Choice] = {}
    for choice in choices:
        fingerprint = choice[2].hello.fingerprint
        best = found.get(fingerprint)
        if best is None or choice < best:
            found[fingerprint] = choice
    return found
