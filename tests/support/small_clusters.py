"""Small simulated clusters with figures that can be reckoned by hand, and random ones for properties."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from core.latency.step import StepCost, Table
from sim.cluster import Admission, ClusterSpec, LinkSpec, Mode, Order, Outage, PoolSpec, Routing, Rule
from sim.outcome import Target
from sim.workload import Workload

# 10 ms + 1 ms a prompt token; 20 ms + 1 ms a sequence for a decode step; context costs nothing.
PLAIN = StepCost(
    dense=Table.line(0.010, 0.001),
    pair=Table.constant(0.0),
    decode_fixed=Table.line(0.020, 0.001),
    decode_context=Table.constant(0.0),
)
LOOSE = (Target("any", 1e6, 1e6),)


def pool(
    replicas: int = 1,
    *,
    kv_tokens: int = 16_000,
    seqs: int = 8,
    budget: int = 512,
    chunked: bool = True,
    stages: int = 1,
    cost: StepCost = PLAIN,
) -> PoolSpec:
    """Make a pool of the plain cost."""
    return PoolSpec(
        replicas,
        cost,
        kv_tokens,
        pipeline_parallel=stages,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        chunked=chunked,
    )


def arrivals(*requests: tuple[float, int, int]) -> Workload:
    """Make a workload of (arrival in s, prompt tokens, output tokens)."""
    times, prompts, outputs = zip(*requests, strict=True)
    return Workload("test", np.array(times, float), np.array(prompts, np.int64), np.array(outputs, np.int64))


@st.composite
def workloads(draw: st.DrawFn, max_requests: int = 24) -> Workload:
    """Draw a few requests of up to 300 prompt and 40 output tokens; some share prefixes."""
    count = draw(st.integers(1, max_requests))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.01, 0.1, 1.0]), min_size=count, max_size=count))
    prompts = draw(st.lists(st.integers(1, 300), min_size=count, max_size=count))
    outputs = draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
    heads = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    times = np.cumsum(gaps) - gaps[0]
    # Request i begins with block `head`, then has a block of its own; blocks of 64 tokens.
    ids = [[head] + ([3 + i] if prompts[i] > 64 else []) for i, head in enumerate(heads)]
    start = np.concatenate([[0], np.cumsum([len(own) for own in ids])]).astype(np.int64)
    flat = np.array([block for own in ids for block in own], np.int64)
    return Workload(
        "random",
        times,
        np.array(prompts, np.int64),
        np.array(outputs, np.int64),
        prefix_start=start,
        prefix_ids=flat,
        prefix_block_tokens=64,
    )


@st.composite
def _pools(draw: st.DrawFn) -> PoolSpec:
    return pool(
        draw(st.integers(1, 3)),
        kv_tokens=draw(st.sampled_from([256, 512, 4096])),
        seqs=draw(st.integers(1, 6)),
        budget=draw(st.sampled_from([16, 64, 512])),
        chunked=draw(st.booleans()),
        stages=draw(st.sampled_from([1, 1, 2])),
    )


@st.composite
def clusters(draw: st.DrawFn) -> ClusterSpec:
    """Draw a cluster of any mode with up to three workers in a pool, tight KV, slow links and outages."""
    mode = draw(st.sampled_from(list(Mode)))
    prefill = draw(_pools()) if mode in (Mode.DISAGGREGATED, Mode.HYBRID) else None
    decode = draw(_pools())
    num_workers = decode.replicas + (prefill.replicas if prefill else 0)
    outages = draw(
        st.lists(
            st.builds(
                lambda worker, start, length: Outage(worker, start, start + length),
                st.integers(0, num_workers - 1),
                st.sampled_from([0.0, 0.05, 0.3, 1.1]),
                st.sampled_from([0.02, 0.5, 3.0]),
            ),
            max_size=2,
            unique_by=lambda outage: outage.worker,
        )
    )
    link = LinkSpec(
        bytes_per_s=draw(st.sampled_from([float("inf"), 1e4, 1e6])),
        latency_s=draw(st.sampled_from([0.0, 0.002])),
        kv_bytes_per_token=100,
        layerwise=draw(st.booleans()),
    )
    routing = Routing(
        rule=draw(st.sampled_from(list(Rule))),
        order=draw(st.sampled_from(list(Order))),
        admission=draw(st.sampled_from(list(Admission))),
        whole_below_tokens=draw(st.sampled_from([0, 100])) if mode is Mode.HYBRID else 0,
        overflow=mode is Mode.HYBRID and draw(st.booleans()),
    )
    return ClusterSpec(
        mode,
        decode,
        prefill,
        link,
        routing,
        prefix_cache=draw(st.booleans()),
        first_token_from_prefill=draw(st.booleans()),
        outages=tuple(outages),
    )
