"""What is told of one request, as values: the answer of GET /v1/requests/{id}/explain.

Owns the form of that answer, which clients read. Times are milliseconds. Must not know how any of it is found out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Predicted:
    """One predicted time with its 90 % interval."""

    ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One route that was open, and what the policy expected of it from the decision on."""

    decode: str
    prefill: str | None
    chosen: bool
    reason: str
    ttft: Predicted | None
    tpot: Predicted | None
    queue_ms: float | None
    prefill_ms: float | None
    transfer_ms: float | None  # as far as it is not hidden behind prefill
    blocks_ms: float | None
    first_step_ms: float | None


@dataclass(frozen=True, slots=True)
class Choice:
    """The latest decision: a "route", a "hold" or a "rejection"."""

    kind: str
    at_ms: float  # after arrival
    decode: str | None
    prefill: str | None
    reason: str  # the policy's
    because: str  # compared with the next best, in words
    earliest_feasible_ms: float | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """One time that the request was held back."""

    at_ms: float
    until_ms: float
    reason: str


@dataclass(frozen=True, slots=True)
class FailedTry:
    """One route that failed before the first token."""

    decode: str
    prefill: str | None
    error: str


@dataclass(frozen=True, slots=True)
class ResumedTold:
    """One time that the stream went on at another worker."""

    at_ms: float  # the last bytes before it, after arrival
    gap_ms: float  # in which the client got nothing
    decode: str


@dataclass(frozen=True, slots=True)
class CacheUse:
    """Prompt tokens that did not have to be computed: as believed at the decision, and as workers counted them."""

    prompt_tokens_estimate: int
    prompt_tokens: int | None
    believed_prefill: int
    believed_decode: int
    cached_prefill: int | None
    cached_decode: int | None
    received_decode: int | None  # handed over


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of the time line."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class TimelineTold:
    """Stages that follow one another and add up to `total_ms`; see router.timeline."""

    until: str
    total_ms: float
    stages: tuple[Stage, ...]
    transfer_hidden_ms: float | None
    output_ms: float | None


@dataclass(frozen=True, slots=True)
class Actual:
    """What came of it."""

    ttft_ms: float | None
    tpot_ms: float | None
    e2e_ms: float | None
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one request was routed as it was, and where its time went."""

    request_id: str
    path: str
    state: str  # "running" or "ended"
    status: int  # of the HTTP answer; 0: there is none yet
    slo_class: str
    ttft_target_ms: float
    tpot_target_ms: float
    verdict: str
    choice: Choice | None  # None: it was not decided
    candidates: tuple[Candidate, ...]  # best first; empty when the policy does not predict
    holds: tuple[Held, ...]  # the first few
    num_holds: int
    failed_tries: tuple[FailedTry, ...]
    cache: CacheUse
    timeline: TimelineTold
    predicted_ttft: Predicted | None  # from arrival
    predicted_tpot: Predicted | None
    actual: Actual
    resumes: tuple[ResumedTold, ...] = ()
