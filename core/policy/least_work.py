"""The default policy: send a request where the least work lies before it.

Owns the estimate of work. Work is counted in prompt tokens, the unit in which prefill time is linear; what a
decode worker holds is converted to it. Must not know seconds: equal workers are ordered without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.policy.fallback import NO_PAIR, Alone, without_pair
from core.policy.pairing import least, least_pair
from core.policy.prediction import UNSEEN_PROMPT_TOKENS, sequences, unseen_requests
from core.policy.protocol import Candidates
from core.types import ClusterView, Rejection, RequestShape, Route, WorkerView

# One sequence more in a decode batch lengthens every step of it, for as long as the request runs.
DECODE_SEQUENCE_TOKENS: Final = 64
# A full KV cache means preemption, which costs a whole prompt.
FULL_CACHE_TOKENS: Final = 1024


@dataclass(frozen=True, slots=True)
class LeastPredictedWork:
    """Picks the pair of equal fingerprints with the least predicted work; ties go to the lesser ids."""

    whole_below_tokens: int = 0  # prompts up to this length run whole on a decode worker

    def decide(self, request: RequestShape, cluster: ClusterView, now_s: float) -> Route | Rejection:
        """Place one request; see Policy."""
        workers = Candidates.of(cluster)
        case = without_pair(request, workers, self.whole_below_tokens)
        if isinstance(case, Rejection):
            return case
        if case is not None:
            return _whole(case)
        pair = least_pair(workers, prefill_work_tokens, decode_work_tokens)
        if pair is None:
            return _whole(Alone(workers.decode, NO_PAIR))
        return Route(decode=pair[0], prefill=pair[1], reason="least predicted work")


def prefill_work_tokens(worker: WorkerView) -> float:
    """Estimate the prompt tokens that lie before a new prompt on a prefill worker."""
    return float(worker.inflight_prompt_tokens + UNSEEN_PROMPT_TOKENS * unseen_requests(worker))


def decode_work_tokens(worker: WorkerView) -> float:
    """Estimate how much a decode worker already does, in prompt tokens, whole requests included."""
    state = worker.state
    used = state.kv_blocks_used / state.kv_blocks_total if state.kv_blocks_total else 0.0
    return worker.inflight_prompt_tokens + DECODE_SEQUENCE_TOKENS * sequences(worker) + FULL_CACHE_TOKENS * used


def whole_work_tokens(worker: WorkerView) -> float:
    """Estimate what lies before a whole request: prompts and sequences both."""
    return decode_work_tokens(worker) + UNSEEN_PROMPT_TOKENS * worker.state.num_waiting


def _whole(case: Alone) -> Route:
    return Route(decode=least(case.workers, whole_work_tokens), prefill=None, reason=case.reason)
