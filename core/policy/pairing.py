"""The least pair of two workers of equal fingerprints, by scores that add up; and the asking of a policy again when
it chose a pair that is not to be used.

Owns the search over pairs. Must not know what a score means, nor why a pair is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from core.policy.protocol import Candidates
from core.types import Decision, Fingerprint, Route, WorkerView

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


def decide_allowed(
    decide: Callable[[frozenset[str]], Decision], excluded: frozenset[str], allows: Callable[[str, str], bool]
) -> tuple[frozenset[str], Decision]:
    """Ask until the decision is for no pair that is not allowed; return it with the workers that were left out for it.

    First the prefill worker of a pair that is not allowed is left out, then, when nothing but a whole request is left,
    its decode worker instead. `decide` is asked at most twice for each prefill worker.
    """
    decision = decide(excluded)
    while isinstance(decision, Route) and decision.prefill is not None:
        if allows(decision.prefill, decision.decode):
            break
        without_sender = excluded | {decision.prefill}
        other = decide(without_sender)
        if isinstance(other, Route) and other.prefill is None:
            without_receiver = excluded | {decision.decode}
            found = decide(without_receiver)
            if isinstance(found, Route) and found.prefill is not None and allows(found.prefill, found.decode):
                return without_receiver, found
        excluded, decision = without_sender, other
    return excluded, decision


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
