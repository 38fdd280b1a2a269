"""Everything the compiled simulation knows: a few record arrays.

Owns the layout and how a state is made from a cluster and a workload. Worker ids: prefill workers first, then decode
workers. A worker with p pipeline stages has p lanes, each with a batch of its own: p batches are under way at a time,
each takes the time of the whole model, and one may start when the first stage is free of the last.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from core.latency.step import StepCost, Table
from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Target
from sim.workload import Workload

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I8 = NDArray[np.int8]

NOBODY: Final = -1
PREFILL, DECODE = 0, 1  # pools
# Requests.stage: where a request is. PREFILLED: its KV waits or travels. HELD: no worker lives that could take it.
FUTURE, QUEUED, PREFILLING, PREFILLED, DECODING, HELD, ENDED = range(7)
# Requests.hand: what a hand-over has of its decode worker
NOT_ASKED, ASKED, GRANTED, SENDING, LANDED = range(5)
# Counts
HEAP_SIZE, PUSHED, STEPS, PREEMPTIONS, MAX_QUEUE, RANDOM, TURN, DONE, DONE_TOKENS, ROOM = range(10)


class Columns:
    """Base of record arrays: each annotation is a column, `rows.name[i]` its entry in row i, here and when compiled.

    Records, because compiled functions take one argument for each array and there are over a hundred columns.
    """

    @classmethod
    def make(cls, *shape: int) -> Self:
        """Make an array of zeros of this shape with the columns of the class."""
        types = {"F64": np.float64, "I64": np.int64, "I8": np.int8}
        columns = np.dtype([(name, types[str(kind)]) for name, kind in cls.__annotations__.items()], align=True)
        return cast("Self", np.zeros(shape, columns).view(np.recarray))


class TokenCost(Columns):
    """By (pool, tokens): the tables of core.latency.step written out."""

    dense: F64  # s
    pair: F64  # s per attention pair


class SeqCost(Columns):
    """By (pool, sequences): the tables of core.latency.step written out."""

    fixed: F64  # s
    context: F64  # s per context token
    mixed: F64  # the same beside prompts


class Pools(Columns):
    """By pool."""

    prefill_seq_s: F64
    max_seqs: I64  # of one lane
    budget: I64  # tokens of one step
    kv_blocks: I64
    chunked: I8  # prompts may be split over steps; else they go first, whole, and decode waits


class Rules(NamedTuple):
    """What does not change."""

    num_workers: int
    num_prefill: int
    block_size: int  # tokens
    token_from_prefill: int
    request_overhead_s: float
    handover_overhead_s: float
    kv_bytes_per_token: float
    link_bytes_per_s: float
    link_latency_s: float
    tail_share: float  # of a prompt's KV that can only be sent when its prefill has ended
    rule: int
    by_slack: int
    admission: int
    whole_below: int
    overflow: int
    prefix_tokens: int  # of one prefix block
    prefix_kv_blocks: int  # that one prefix block takes


class Targets(Columns):
    """By class."""

    ttft_s: F64
    tpot_s: F64


class Workers(Columns):
    """By worker, and a last row that only bounds the lanes."""

    pool: I64
    first_lane: I64
    alive: I8
    takes: I8  # new requests; a worker that drains lives and takes none
    used_blocks: I64
    seqs_held: I64  # running, or with blocks granted for a hand-over
    stage_until: F64  # its first pipeline stage is busy
    stage_awaited: I8  # an event will tell when it is not
    sends_until: F64  # its link is busy
    receives_until: F64
    # What the router knows of its own: requests sent here and not seen to end.
    legs: I64
    owed_requests: I64  # of which the prompt is not computed
    owed_tokens: I64  # of those prompts
    owed_pairs: F64
    load_seqs: I64  # requests that decode here or will
    load_context: I64  # their tokens
    # What the worker says at the end of each step.
    frames: I64  # how often it has said it
    frame_s: F64  # when it last did
    running: I64
    waiting: I64
    blocks: I64
    step_s: F64
    step_prompt_tokens: I64  # computed in that step
    step_seqs: I64  # that got a token from it
    # Its prefix cache: a list from the least to the most recently used block.
    newest: I64
    oldest: I64
    num_cached: I64


class Lanes(Columns):
    """By lane."""

    worker: I64
    num_running: I64
    num_begun: I64  # of which the prompt is computed in part
    busy: I8
    epoch: I64  # of the stretch under way; an event of another is void
    steps: I64  # of the stretch: more than one only where nothing but the context changes, see sim.kernel.stretches
    done: I64  # of which have ended, without the requests being told
    seqs: I64  # that make a token in each of them
    stretch_from: F64
    stretch_context: I64  # tokens that its first step reads
    step_from: F64  # the step under way
    step_until: F64
    step_tokens: I64  # prompt tokens of the step under way
    prompts_only: I8  # the step under way leaves the decoding sequences out


class Queues(Columns):
    """By queue, see sim.kernel.queues."""

    head: I64
    tail: I64
    length: I64


class Requests(Columns):
    """By request; what every step touches comes first, in one cache line."""

    todo: I64  # prompt tokens still to be computed where it is
    chunk: I64  # of todo, in the step under way
    made: I64  # output tokens
    output: I64
    room: I64  # tokens that its last block still takes, where it decodes
    prompt: I64
    last_s: F64
    max_itl: F64
    arrived: F64
    first_s: F64
    computed: I64  # tokens before todo
    slo: I64
    stage: I8
    end: I8
    hand: I8
    whole: I8  # prompt and output on its decode worker
    prefill_on: I64
    decode_on: I64
    queue: I64  # that it is in
    next: I64
    prev: I64
    key: F64  # its place in a sorted queue
    prefill_blocks: I64  # KV blocks held
    decode_blocks: I64
    owed_tokens: I64  # what Workers.owed_tokens counts for it
    owed_pairs: F64
    attempt: I64  # counts the routes taken; an event of an earlier one is void
    prefill_from: F64  # or when blocks were granted, if later: from then on KV can be sent


class PrefixBlocks(Columns):
    """By (worker, prefix id): its place in the worker's list of cached blocks."""

    cached: I8
    newer: I64
    older: I64


class Events(Columns):
    """By place in the heap."""

    time_s: F64
    kind: I64
    subject: I64  # a lane, a request or a worker
    epoch: I64  # tells a lane's current step, or a request's current attempt, from void ones
    order: I64  # of pushing


class State(NamedTuple):
    """A cluster at one time."""

    counts: I64  # see the constants above
    rules: Rules
    targets: Targets
    tokens: TokenCost
    seqs: SeqCost
    pools: Pools
    workers: Workers
    lanes: Lanes
    running: I64  # (lanes, seqs): requests in order of joining
    queues: Queues
    reqs: Requests
    prefix_start: I64  # by request, and one more; empty without prefixes
    prefix_ids: I64
    prefixes: PrefixBlocks
    events: Events


def make_state(cluster: ClusterSpec, workload: Workload, targets: tuple[Target, ...], *, seed: int = 0) -> State:
    """Lay out an empty cluster at time 0 with all arrivals to come; outages have still to be pushed."""
    pools, lanes = _pools(cluster), _lanes(cluster)
    tokens, seqs = _costs(cluster, workload, pools)
    counts = np.zeros(10, np.int64)
    counts[RANDOM] = 2 * seed + 1
    queues = Queues.make(2 * cluster.num_workers)
    queues.head[:] = queues.tail[:] = NOBODY
    has_prefixes = cluster.prefix_cache and len(workload.prefix_ids) > 0
    num_ids = int(workload.prefix_ids.max()) + 1 if has_prefixes else 1
    return State(
        counts=counts,
        rules=_rules(cluster, workload),
        targets=_targets(targets),
        tokens=tokens,
        seqs=seqs,
        pools=pools,
        workers=_workers(cluster, lanes),
        lanes=_make_lanes(lanes),
        running=np.zeros((int(lanes.sum()), int(pools.max_seqs.max()) + 1), np.int64),
        queues=queues,
        reqs=_requests(workload),
        prefix_start=np.array(workload.prefix_start if has_prefixes else [], np.int64),
        prefix_ids=np.array(workload.prefix_ids if has_prefixes else [], np.int64),
        prefixes=PrefixBlocks.make(cluster.num_workers if has_prefixes else 1, num_ids),
        events=Events.make(int(lanes.sum()) + cluster.num_workers + len(workload) + 2 * len(cluster.outages) + 4),
    )


@lru_cache(maxsize=512)
def _written_out(table: Table, size: int) -> F64:
    """Evaluate a table at 0, 1, ... size - 1."""
    at, value = np.array(table.at), np.array(table.value)
    x = np.arange(size, dtype=np.float64)
    return np.interp(x, at, value) + table.slope_beyond * np.maximum(x - at[-1], 0.0)


@lru_cache(maxsize=64)
def _written_costs(costs: tuple[StepCost, StepCost], num_tokens: int, num_seqs: int) -> tuple[TokenCost, SeqCost]:
    """Write the costs of both pools out; shared by the states of one search, which only read them."""
    tokens, seqs = TokenCost.make(2, num_tokens), SeqCost.make(2, num_seqs)
    for pool, cost in enumerate(costs):
        tokens.dense[pool] = _written_out(cost.dense, num_tokens)
        tokens.pair[pool] = _written_out(cost.pair, num_tokens)
        seqs.fixed[pool] = _written_out(cost.decode_fixed, num_seqs)
        seqs.context[pool] = _written_out(cost.decode_context, num_seqs)
        seqs.mixed[pool] = _written_out(cost.mixed_context or cost.decode_context, num_seqs)
    return tokens, seqs


def _costs(cluster: ClusterSpec, workload: Workload, pools: Pools) -> tuple[TokenCost, SeqCost]:
    longest = int((workload.prompt_tokens + workload.output_tokens).max(initial=1))
    # Rounded up, so that what is written out once serves other workloads too.
    num_tokens = -(-(max(int(pools.budget.max()), longest) + int(pools.max_seqs.max()) + 2) // 4096) * 4096
    num_seqs = -(-(int(pools.max_seqs.max()) + 2) // 64) * 64
    prefill, decode = _both(cluster)
    return _written_costs((prefill.cost, decode.cost), num_tokens, num_seqs)


def _both(cluster: ClusterSpec) -> tuple[PoolSpec, PoolSpec]:
    return cluster.prefill or cluster.decode, cluster.decode


def _lanes(cluster: ClusterSpec) -> I64:
    prefill = [cluster.prefill.pipeline_parallel] * cluster.prefill.replicas if cluster.prefill else []
    return np.array(prefill + [cluster.decode.pipeline_parallel] * cluster.decode.replicas, np.int64)


def _pools(cluster: ClusterSpec) -> Pools:
    pools = Pools.make(2)
    for i, pool in enumerate(_both(cluster)):
        pools.prefill_seq_s[i] = pool.cost.prefill_seq_s
        pools.max_seqs[i] = max(1, pool.max_num_seqs // pool.pipeline_parallel)
        pools.budget[i] = pool.max_num_batched_tokens
        pools.kv_blocks[i] = pool.kv_capacity_tokens // cluster.block_size
        pools.chunked[i] = pool.chunked and (i == PREFILL or cluster.mode is not Mode.ONE_POOL)
    return pools


def _targets(targets: tuple[Target, ...]) -> Targets:
    rows = Targets.make(len(targets))
    rows.ttft_s[:] = [target.ttft_s for target in targets]
    rows.tpot_s[:] = [target.tpot_s for target in targets]
    return rows


def _rules(cluster: ClusterSpec, workload: Workload) -> Rules:
    link, routing = cluster.link, cluster.routing
    return Rules(
        num_workers=cluster.num_workers,
        num_prefill=cluster.prefill.replicas if cluster.prefill else 0,
        block_size=cluster.block_size,
        token_from_prefill=int(cluster.first_token_from_prefill),
        request_overhead_s=float(cluster.request_overhead_s),
        handover_overhead_s=float(cluster.handover_overhead_s),
        kv_bytes_per_token=float(link.kv_bytes_per_token),
        link_bytes_per_s=float(link.bytes_per_s),
        link_latency_s=float(link.latency_s),
        tail_share=1.0 / link.layers if link.layerwise else 1.0,
        rule=int(routing.rule),
        by_slack=int(routing.order),
        admission=int(routing.admission),
        whole_below=int(routing.whole_below_tokens),
        overflow=int(routing.overflow),
        prefix_tokens=int(workload.prefix_block_tokens),
        prefix_kv_blocks=-(-int(workload.prefix_block_tokens) // cluster.block_size),
    )


def _workers(cluster: ClusterSpec, lanes: I64) -> Workers:
    workers = Workers.make(len(lanes) + 1)
    workers.pool[:] = DECODE
    workers.pool[: cluster.prefill.replicas if cluster.prefill else 0] = PREFILL
    workers.first_lane[1:] = np.cumsum(lanes)
    workers.alive[:-1] = workers.takes[:-1] = 1
    workers.newest[:] = workers.oldest[:] = NOBODY
    return workers


def _make_lanes(lanes: I64) -> Lanes:
    rows = Lanes.make(int(lanes.sum()))
    rows.worker[:] = np.repeat(np.arange(len(lanes)), lanes)
    return rows


def _requests(workload: Workload) -> Requests:
    reqs = Requests.make(len(workload))
    reqs.arrived[:] = workload.arrived_s
    reqs.prompt[:] = workload.prompt_tokens
    reqs.output[:] = workload.output_tokens
    reqs.slo[:] = workload.classes()
    for column in (reqs.prefill_on, reqs.decode_on, reqs.queue, reqs.next, reqs.prev):
        column[:] = NOBODY
    reqs.first_s[:] = reqs.last_s[:] = np.inf
    return reqs
