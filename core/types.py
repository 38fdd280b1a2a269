"""The nouns of Baton: workers, what they look like from outside, requests, routes and hand-overs.

Owns values only. Must not know how any of them is carried (gRPC, HTTP) or made (Ray, vLLM). Those that are made for
every request are tuples with names, which are made in less than half the time of a frozen dataclass.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple

WAITING_SHARE: Final = 0.05  # of a TTFT; more is noticed


class Role(enum.StrEnum):
    """What a worker is for; every worker can serve a whole request when it must."""

    PREFILL = "prefill"
    DECODE = "decode"


class Leg(enum.StrEnum):
    """Which part of a request one worker runs."""

    WHOLE = "whole"  # prompt and output on one worker, no hand-over
    PREFILL = "prefill"  # prompt only, KV sent away
    DECODE = "decode"  # KV received, every output token made here


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What must be equal on both sides for KV blocks to mean the same; unequal workers are never paired."""

    engine: str  # "vllm 0.32.0+cpu"
    model: str  # digest of config and weights index
    tokenizer: str  # digest of tokenizer files and chat template
    dtype: str
    cache_dtype: str
    block_size: int  # tokens in one KV block
    layout: str  # per-layer block shape and backend, e.g. "cpu:4x(4,32,64)"
    tensor_parallel: int
    pipeline_parallel: int
    adapters: str  # digest of the LoRA adapters served

    def differences(self, other: Fingerprint) -> tuple[str, ...]:
        """Name the fields in which `other` differs, in declaration order."""
        return tuple(f for f in self.__dataclass_fields__ if getattr(self, f) != getattr(other, f))


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One worker as the controller announces it; a restarted worker has a greater epoch."""

    worker_id: str  # "prefill-0"
    role: Role
    epoch: int
    address: str  # host:port of its gRPC session service
    node: str  # Ray node or host name, for people


@dataclass(frozen=True, slots=True)
class Membership:
    """All and only the workers the controller wants requests to go to, at one version."""

    version: int
    workers: tuple[WorkerRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerHello:
    """What a worker says of itself when a router connects."""

    worker_id: str
    role: Role
    epoch: int
    model: str  # served model name
    max_model_len: int  # tokens
    kv_address: str  # host:port where its engine receives KV
    num_kv_blocks: int
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A prefill worker of which a decode worker takes no KV for a while."""

    worker_id: str
    epoch: int
    times: int  # how often it was, the present one included; with another number it begins anew
    left_s: float  # how long it was to be, when this was said
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker's load at the end of its latest engine step."""

    num_running: int = 0
    num_waiting: int = 0  # queued in the engine, those that wait for KV included
    kv_blocks_used: int = 0  # held by live requests; cached but free blocks do not count
    kv_blocks_total: int = 0
    step_s: float = 0.0  # time of the latest engine step
    draining: bool = False
    step_prompt_tokens: int = 0  # computed in that step
    step_seqs: int = 0  # sequences that got a token from it
    quarantined: tuple[Quarantined, ...] = ()  # of which it takes no KV
    stalled: bool = False  # its engine core stands still: what runs there does not go on


@dataclass(frozen=True, slots=True)
class LegOrder:
    """What a worker orders its legs by."""

    slack_s: float = 0.0  # from when it arrives, until the prompt must be begun to keep its SLO
    prompt_tokens: int = 0  # that are to be computed, as the router estimates it; 0: it does not say


class LegFacts(NamedTuple):
    """What a worker measured of one leg; zero where it cannot tell."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in the worker's own prefix cache
    received_tokens: int = 0  # of the prompt, handed over by a prefill worker
    queued_s: float = 0.0  # from the engine's taking the leg to its first step
    prefill_s: float = 0.0  # from there to its first token
    blocks_s: float = 0.0  # from the engine's taking the leg until it had the blocks for a hand-over
    landed_s: float = 0.0  # from there until the last of the hand-over was in them and the scheduler knew; 0: none was


@dataclass(frozen=True, slots=True)
class WorkerSpeed:
    """How a worker's steps compare with what was predicted of them, as observed of late."""

    prefill_factor: float = 1.0  # observed over predicted time of prompts; 1 until enough was seen
    decode_factor: float = 1.0  # and of decode steps
    prefill_spread: float = 0.0  # half width of the 90 % interval of that ratio, as a share of it
    decode_spread: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as a policy sees it: announced, described, and its latest state plus what this router has in flight."""

    record: WorkerRecord
    hello: WorkerHello
    state: WorkerState = field(default_factory=WorkerState)
    inflight_requests: int = 0  # submitted by this router and not ended
    inflight_prompt_tokens: int = 0  # estimated, of legs whose prefill this worker still owes
    inflight_prompts: int = 0  # how many legs those are
    inflight_prompt_pairs: float = 0.0  # their attention pairs, see core.latency.step
    inflight_context_tokens: int = 0  # prompt tokens, estimated, of the requests that decode or will decode here
    prompting_since_s: float | None = None  # when the oldest of those prompts came to its turn; None: none is owed
    tightest_tpot_s: float | None = None  # least TPOT target of the requests in flight, best effort aside; None: none
    speed: WorkerSpeed = WorkerSpeed()


@dataclass(frozen=True, slots=True)
class HeldWork:
    """The requests that the router holds back until a worker has room, in the order in which they will be let go."""

    keys_s: tuple[float, ...] = ()  # ascending: the queue's keys, see core.policy.slack_queue
    tokens_before: tuple[int, ...] = (0,)  # prompt tokens of the first i requests, one longer than keys_s


@dataclass(frozen=True, slots=True)
class ClusterView:
    """All and only the workers that are connected and take work, ordered by worker id, and what waits for them."""

    workers: tuple[WorkerView, ...] = ()
    held: HeldWork = HeldWork()
    promised: HeldWork = HeldWork()  # refused requests with a reservation, not back yet; keys are when they are due

    def of_role(self, role: Role) -> tuple[WorkerView, ...]:
        """List the workers of one role, ordered by worker id."""
        return tuple(w for w in self.workers if w.record.role is role)

    def without(self, worker_ids: Collection[str]) -> ClusterView:
        """Leave some workers out; the same object when there are none to leave out."""
        if not worker_ids:
            return self
        workers = tuple(w for w in self.workers if w.record.worker_id not in worker_ids)
        return ClusterView(workers, self.held, self.promised)


@dataclass(frozen=True, slots=True)
class ControlDecision:
    """Something that was decided about the pools, as the controller tells its routers."""

    at_s: float  # since the epoch
    text: str
    reason: str
    outcome: str = ""  # empty: it is under way


class Margins(NamedTuple):
    """The ends of the 90 % intervals of a class's predictions: in spreads, on a logarithmic scale about the prediction.

    They follow what came of earlier predictions, see core.policy.interval.
    """

    ttft_low: float  # of requests that need not wait; no more than 0
    ttft_high: float  # no less than 0
    waiting_low: float  # TTFT of the others
    waiting_high: float
    tpot_low: float
    tpot_high: float


class RequestShape(NamedTuple):
    """What a policy may know of a request before it runs."""

    request_id: str
    prompt_tokens: int  # estimate; the router does not tokenise
    max_tokens: int | None
    slo_class: str
    whole_only: str | None = None  # why this request cannot use handed-over KV, e.g. "n>1"
    sequence: int = 0  # how many decisions its router took before this one
    tenant: str = ""  # whose request it is; empty where there are no keys
    ttft_s: float | None = None  # its own target; None: that of its class
    tpot_s: float | None = None  # its own target; None: that of its class
    waited_s: float = 0.0  # since it arrived: its time to the first token runs already
    priority: int = 0  # within its class, less is sooner (vLLM's `priority`)
    cached: tuple[tuple[str, int], ...] = ()  # (worker id, prompt tokens believed in its cache), by worker id
    over_share_s: float = 0.0  # service that its tenant had beyond its fair share, see core.policy.fairness
    is_reserved: bool = False  # it was promised this time, see core.policy.reservations
    margins: Margins | None = None  # of its class's predictions; None: nobody follows them, spreads are as claimed
    attainment: float | None = None  # of its class, as measured; None: predictions of it are trusted


class Forecast(NamedTuple):
    """What is predicted of one route, from the decision on; the parts of the TTFT follow one another.

    A spread is half the width of the 90 % interval that costs claim, as a share of the predicted value; the ends are
    those of the interval that is given out.
    """

    queue_s: float  # until the prompt is begun
    prefill_s: float  # of the part that is not cached
    transfer_s: float  # of KV, as far as it is not hidden behind prefill
    blocks_s: float  # until the decode worker has blocks
    first_step_s: float  # fixed costs and the decode step that makes the first token
    tpot_s: float  # once the request has joined the decode batch
    ttft_spread: float = 0.0
    tpot_spread: float = 0.0
    ttft_low_s: float = 0.0
    ttft_high_s: float = 0.0
    tpot_low_s: float = 0.0
    tpot_high_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        """Add up the parts."""
        return self.queue_s + self.prefill_s + self.transfer_s + self.blocks_s + self.first_step_s

    @property
    def waits(self) -> bool:
        """Whether a noticeable part of the TTFT is waiting, of which less is known than of the rest."""
        return self.queue_s + self.blocks_s > WAITING_SHARE * self.ttft_s


class Route(NamedTuple):
    """Where a request goes. `prefill` is None when `decode` serves the whole request alone."""

    decode: str
    prefill: str | None
    reason: str
    forecast: Forecast | None = None  # None: the policy does not predict


class Hold(NamedTuple):
    """The request stays with the router, for no worker has room: ask again when one has, at the latest at `until_s`."""

    reason: str
    until_s: float  # of the clock that decisions are asked with
    key_s: float  # its place in the queue: less goes sooner
    forecast: Forecast | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request goes nowhere; `error` is the name of a class in core.errors."""

    error: str
    reason: str
    retry_after_s: float | None = None
    earliest_s: float | None = None  # from now: when an equal request is expected to be admitted and to keep its SLO
    confidence: float | None = None  # that it is


Decision = Route | Hold | Rejection


@dataclass(frozen=True, slots=True)
class Handover:
    """The ticket of one KV hand-over, known to both legs."""

    transfer_id: str
    kv_address: str  # where the decode engine receives
    lease_s: float  # how long either side holds blocks for it
    due_in_s: float | None = None  # until its request's first token is due; None: nobody waits for it
