"""What a policy is told once, when it is made: the cost of each pool's steps, the promise, and the operator's limits.

Owns the values and their JSON form, which goes into router specs and event logs. Must not know policies.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pydantic import TypeAdapter

from core.latency.step import StepCost
from core.types import Role


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """The workers of one role."""

    cost: StepCost | None  # None: not known yet, see core.latency.online
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    chunked: bool = True  # prompts are computed beside the decode batch; else before it
    prefill_error: float = 0.0  # standard deviation of the relative error of `cost`, see core.latency.profile
    decode_error: float = 0.0
    stages: int = 1  # pipeline stages: so many batches are under way at a time, each for the time of the whole model


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """The way of the KV cache between the pools."""

    latency_s: float = 0.0
    s_per_token: float = 0.0  # seconds that the KV of one token takes
    tail_share: float = 0.0  # of a prompt's KV that is sent when its prefill has ended: 1 / layers; 1: all of it


class Tier(enum.StrEnum):
    """Who gives way to whom when not every promise can be kept."""

    PROTECTED = "protected"  # never refused or delayed for the sake of the others
    STANDARD = "standard"
    BEST_EFFORT = "best_effort"  # takes what the others leave


@dataclass(frozen=True, slots=True)
class ClassTarget:
    """The promise to one class of requests."""

    ttft_s: float
    tpot_s: float
    tier: Tier = Tier.STANDARD
    attainment: float = 0.9  # share of the requests that are to meet both


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """Everything that policies may use beside the request and the cluster's view; each takes what it needs."""

    pools: Mapping[Role, PoolFacts] = field(default_factory=dict)  # empty: no profile is known
    targets: Mapping[str, ClassTarget] = field(default_factory=dict)  # by class
    link: LinkFacts = LinkFacts()
    request_overhead_s: float = 0.0  # in every TTFT
    handover_overhead_s: float = 0.0  # in the TTFT of handed-over requests
    first_token_from_prefill: bool = False  # the first token is there when prefill ends; else after a decode step
    whole_below_tokens: int = 0  # prompts up to this length run whole on a decode worker
    overflow: bool = False  # a prompt that would miss its TTFT as a pair runs whole on a decode worker that can
    admit_by_ttft: bool = False  # refuse what is predicted to miss its TTFT everywhere
    admit_by_tpot: bool = False  # and what is predicted to miss its TPOT
    may_hold: bool = False  # whoever asks keeps what no worker has room for, and asks again
    mean_output_tokens: float = 128.0  # chats answer in 100-200 tokens (Azure 2023 conversations: 211 on average)

    def to_json(self) -> str:
        """Serialise; `from_json` gives back an equal context."""
        return _JSON.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> PolicyContext:
        """Parse what `to_json` wrote. Raises ValueError for anything else."""
        return _JSON.validate_json(text)


_JSON: Final = TypeAdapter(PolicyContext)
