"""What is simulated: pools of equal workers, the link between them, and how requests are routed.

Owns values only. Must not know how the simulation proceeds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from core.latency.step import StepCost


class Mode(enum.StrEnum):
    """How prompts and outputs share workers."""

    ONE_POOL = "one-pool"  # whole prompts first; decode waits meanwhile
    ONE_POOL_CHUNKED = "one-pool-chunked"  # prompts in chunks beside the decode batch
    DISAGGREGATED = "disaggregated"
    HYBRID = "hybrid"  # disaggregated; decode workers take short or overflowing prompts in chunks


class Rule(enum.IntEnum):
    """How the search gear picks a worker. The numbers are those of the compiled code."""

    PREDICTED_WORK = 0  # least predicted seconds of work
    LEAST_LOADED = 1  # fewest requests
    ROUND_ROBIN = 2
    RANDOM = 3


class Order(enum.IntEnum):
    """How a worker's queue of prompts is ordered."""

    ARRIVAL = 0
    SLACK = 1  # least time to the TTFT target after its own prefill first


class Admission(enum.IntEnum):
    """Which requests are refused at arrival, by prediction; refused ones count as missed."""

    OFF = 0
    TTFT = 1  # no worker is predicted to meet the TTFT target
    TTFT_AND_TPOT = 2  # nor any decode worker the TPOT target


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Equal workers."""

    replicas: int
    cost: StepCost
    kv_capacity_tokens: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    chunked: bool = True  # prompts may be split over steps; else they go whole and before decode steps
    device: str = ""

    @property
    def gpus(self) -> int:
        """Devices of the whole pool."""
        return self.replicas * self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """The way of the KV cache; each worker sends and receives one transfer at a time."""

    bytes_per_s: float = float("inf")
    latency_s: float = 0.0
    kv_bytes_per_token: int = 0
    layers: int = 32  # the last of them can only be sent when prefill has ended
    layerwise: bool = True  # sent while prefill computes; else after it


@dataclass(frozen=True, slots=True)
class Routing:
    """What the router does in the search gear."""

    rule: Rule = Rule.PREDICTED_WORK
    order: Order = Order.ARRIVAL
    admission: Admission = Admission.OFF
    whole_below_tokens: int = 0  # hybrid: uncached prompts up to this length run whole on a decode worker
    overflow: bool = False  # hybrid: a prompt that would miss its TTFT runs whole on a decode worker that can
    state_delay_s: float = 0.0  # how old a worker's state is when the router reads it, beyond the last step


@dataclass(frozen=True, slots=True)
class Outage:
    """A worker that takes no work for a while; what it holds is computed again elsewhere."""

    worker: int  # prefill workers first, then decode workers
    from_s: float  # 0 with until_s: a start-up delay
    until_s: float


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """One candidate. One-pool modes have no prefill pool; their workers are `decode`."""

    mode: Mode
    decode: PoolSpec
    prefill: PoolSpec | None = None
    link: LinkSpec = field(default_factory=LinkSpec)
    routing: Routing = field(default_factory=Routing)
    block_size: int = 16
    prefix_cache: bool = False
    first_token_from_prefill: bool = False  # DistServe counts it there; Baton's decode makes every output token
    request_overhead_s: float = 0.0  # added to every TTFT
    handover_overhead_s: float = 0.0  # added to the TTFT of handed-over requests
    outages: tuple[Outage, ...] = ()

    @property
    def gpus(self) -> int:
        """Devices of both pools."""
        return self.decode.gpus + (self.prefill.gpus if self.prefill else 0)

    @property
    def num_workers(self) -> int:
        """Workers of both pools."""
        return self.decode.replicas + (self.prefill.replicas if self.prefill else 0)
