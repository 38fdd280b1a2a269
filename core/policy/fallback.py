"""The cases that leave no choice of a pair: one rule, whatever the policy.

Owns when a request runs whole, and why. Must not rank workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.policy.protocol import Candidates
from core.types import Rejection, RequestShape, WorkerView

RETRY_AFTER_S: Final = 1.0
NO_PAIR: Final = "no prefill worker has the fingerprint of a decode worker"
NO_WORKER: Final = Rejection("no_worker", "no worker is connected that takes requests", RETRY_AFTER_S)


@dataclass(frozen=True, slots=True)
class Alone:
    """The request runs whole on one of these workers, of which there is at least one."""

    workers: tuple[WorkerView, ...]
    reason: str


def without_pair(request: RequestShape, workers: Candidates, whole_below_tokens: int = 0) -> Alone | Rejection | None:
    """Tell who may serve a request that cannot or should not be split; None when a pair may be looked for."""
    if not workers.decode:
        return Alone(workers.prefill, "no decode worker") if workers.prefill else NO_WORKER
    if request.whole_only is not None:
        return Alone(workers.decode, request.whole_only)
    if not workers.prefill:
        return Alone(workers.decode, "no prefill worker")
    if whole_below_tokens and request.prompt_tokens <= whole_below_tokens:
        return Alone(workers.decode, f"at most {whole_below_tokens} prompt tokens")
    return None
