"""The default policy: send a request where the least work lies before it.

Owns the estimate of work. Work is counted in prompt tokens, the unit in which prefill time is linear; what a
decode worker holds is converted to it. Must not know seconds: equal workers are ordered without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from core.policy.protocol import Candidates
from core.types import ClusterView, Fingerprint, Rejection, RequestShape, Route, WorkerView

# A request of which only the number is known (another router sent it) counts as a prompt of middling length.
UNSEEN_PROMPT_TOKENS: Final = 256
# One sequence more in a decode batch lengthens every step of it, for as long as the request runs.
DECODE_SEQUENCE_TOKENS: Final = 64
# A full KV cache means preemption, which costs a whole prompt.
FULL_CACHE_TOKENS: Final = 1024
RETRY_AFTER_S: Final = 1.0
NO_PAIR: Final = "no prefill worker has the fingerprint of a decode worker"


@dataclass(frozen=True, slots=True)
class LeastPredictedWork:
    """Picks the pair of equal fingerprints with the least predicted work; ties go to the lesser ids."""

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Route | Rejection:
        """Place one request; see Policy."""
        workers = Candidates.of(cluster)
        if not workers.decode:
            return self._without_decode(workers)
        if request.whole_only is not None:
            return self._alone(workers.decode, request.whole_only)
        pair = _least_pair(workers)
        if pair is not None:
            return Route(decode=pair[0], prefill=pair[1], reason="least predicted work")
        return self._alone(workers.decode, NO_PAIR if workers.prefill else "no prefill worker")

    def _alone(self, decode: tuple[WorkerView, ...], reason: str) -> Route:
        chosen = min((whole_work_tokens(w), w.record.worker_id) for w in decode)
        return Route(decode=chosen[1], prefill=None, reason=reason)

    def _without_decode(self, workers: Candidates) -> Route | Rejection:
        if not workers.prefill:
            return Rejection("no_worker", "no worker is connected that takes requests", RETRY_AFTER_S)
        return self._alone(workers.prefill, "no decode worker")


def prefill_work_tokens(worker: WorkerView) -> float:
    """Estimate the prompt tokens that lie before a new prompt on a prefill worker."""
    return float(worker.inflight_prompt_tokens + UNSEEN_PROMPT_TOKENS * _unseen_requests(worker))


def decode_work_tokens(worker: WorkerView) -> float:
    """Estimate how much a decode worker already does, in prompt tokens, whole requests included."""
    state = worker.state
    sequences = max(worker.inflight_requests, state.num_running + state.num_waiting)
    used = state.kv_blocks_used / state.kv_blocks_total if state.kv_blocks_total else 0.0
    return worker.inflight_prompt_tokens + DECODE_SEQUENCE_TOKENS * sequences + FULL_CACHE_TOKENS * used


def whole_work_tokens(worker: WorkerView) -> float:
    """Estimate what lies before a whole request: prompts and sequences both."""
    return decode_work_tokens(worker) + UNSEEN_PROMPT_TOKENS * worker.state.num_waiting


def _unseen_requests(worker: WorkerView) -> int:
    """Count the requests that other routers sent; its own are counted by their tokens."""
    return max(0, worker.state.num_running + worker.state.num_waiting - worker.inflight_requests)


_Choice = tuple[float, str, WorkerView]  # work in tokens, worker id, worker; ids differ, so views are never compared


def _choices(workers: Iterable[WorkerView], work_tokens: Callable[[WorkerView], float]) -> list[_Choice]:
    return [(work_tokens(w), w.record.worker_id, w) for w in workers]


def _least_pair(workers: Candidates) -> tuple[str, str] | None:
    """Find (decode, prefill) of equal fingerprints with the least sum of work; None when there is no such pair."""
    senders = _choices(workers.prefill, prefill_work_tokens)
    receivers = _choices(workers.decode, decode_work_tokens)
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


def _least_by_fingerprint(choices: Iterable[_Choice]) -> dict[Fingerprint, _Choice]:
    least: dict[Fingerprint, _Choice] = {}
    for choice in choices:
        fingerprint = choice[2].hello.fingerprint
        best = least.get(fingerprint)
        if best is None or choice < best:
            least[fingerprint] = choice
    return least
