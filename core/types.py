"""The nouns of Baton: workers, what they look like from outside, requests, routes and hand-overs.

Owns values only. Must not know how any of them is carried (gRPC, HTTP) or made (Ray, vLLM).
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, field


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
class WorkerState:
    """A worker's load at the end of its latest engine step."""

    num_running: int = 0
    num_waiting: int = 0  # queued in the engine, those that wait for KV included
    kv_blocks_used: int = 0  # held by live requests; cached but free blocks do not count
    kv_blocks_total: int = 0
    step_s: float = 0.0  # time of the latest engine step
    draining: bool = False


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


@dataclass(frozen=True, slots=True)
class ClusterView:
    """All and only the workers that are connected and take work, ordered by worker id."""

    workers: tuple[WorkerView, ...] = ()

    def of_role(self, role: Role) -> tuple[WorkerView, ...]:
        """List the workers of one role, ordered by worker id."""
        return tuple(w for w in self.workers if w.record.role is role)

    def without(self, worker_ids: Collection[str]) -> ClusterView:
        """Leave some workers out; the same object when there are none to leave out."""
        if not worker_ids:
            return self
        return ClusterView(tuple(w for w in self.workers if w.record.worker_id not in worker_ids))


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What a policy may know of a request before it runs."""

    request_id: str
    prompt_tokens: int  # estimate; the router does not tokenise
    max_tokens: int | None
    slo_class: str
    whole_only: str | None = None  # why this request cannot use handed-over KV, e.g. "n>1"
    sequence: int = 0  # how many decisions its router took before this one


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes. `prefill` is None when `decode` serves the whole request alone."""

    decode: str
    prefill: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request goes nowhere; `error` is the name of a class in core.errors."""

    error: str
    reason: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Handover:
    """The ticket of one KV hand-over, known to both legs."""

    transfer_id: str
    kv_address: str  # where the decode engine receives
    lease_s: float  # how long either side holds blocks for it
