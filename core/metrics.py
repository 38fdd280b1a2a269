"""Every metric that Baton itself exports, as data: name, kind, help, labels, buckets.

Owns the names, which are an interface: dashboards and alerts read them. Must not know how they are collected.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


class Kind(enum.StrEnum):
    """What a metric does over time."""

    COUNTER = "counter"  # only grows; its name ends in _total
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `buckets_s` are the upper edges of a histogram without +Inf, in the metric's unit."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets_s: tuple[float, ...] = ()


# Edges in steps of about 1.6 to 2.5: from one step of a small model to a queue of long prompts.
_WAIT_S: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_STEP_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_STAGE_S: Final = (0.0005, 0.001, 0.0025, 0.005, *_WAIT_S)
_WHOLE_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_RATIO: Final = (0.25, 0.5, 0.67, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 4.0)
MAX_TENANTS: Final = 100  # that have series of their own; all others are counted together
OTHER_TENANTS: Final = "other"
ATTAINMENT_WINDOWS_S: Final = {"60s": 60, "1h": 3600}

REQUESTS: Final = Metric(
    "baton_requests_total",
    Kind.COUNTER,
    "Requests ended, by SLO class, outcome and the way they ran (pair, whole, none).",
    ("class", "outcome", "leg"),
)
TTFT: Final = Metric(
    "baton_ttft_seconds",
    Kind.HISTOGRAM,
    "Time from a streamed request's arrival to the first bytes of its answer.",
    ("class",),
    _WAIT_S,
)
TTFT_STAGE: Final = Metric(
    "baton_ttft_stage_seconds",
    Kind.HISTOGRAM,
    "Parts of the time to the first token, which add up to it; a stage that a request skipped counts as 0.",
    ("stage",),
    _STAGE_S,
)
TPOT: Final = Metric(
    "baton_tpot_seconds",
    Kind.HISTOGRAM,
    "Mean time per output token of one streamed request, its first token left out.",
    ("class",),
    _STEP_S,
)
ITL: Final = Metric(
    "baton_itl_seconds",
    Kind.HISTOGRAM,
    "Time between two arrivals of bytes in a stream; several tokens that came together count once.",
    (),
    _STEP_S,
)
E2E: Final = Metric(
    "baton_e2e_seconds",
    Kind.HISTOGRAM,
    "Time from a request's arrival to the last byte of its answer.",
    ("class",),
    _WHOLE_S,
)
SLO_MET: Final = Metric(
    "baton_slo_met_total", Kind.COUNTER, "Requests that kept both targets of their class.", ("class",)
)
SLO_MISSED: Final = Metric(
    "baton_slo_missed_total",
    Kind.COUNTER,
    "Requests that missed a target or failed through no fault of the client.",
    ("class",),
)
GOODPUT: Final = Metric(
    "baton_goodput_requests_per_second",
    Kind.GAUGE,
    "Requests per second that kept both targets of their class, over the last 60 seconds.",
    ("class",),
)
ATTAINMENT: Final = Metric(
    "baton_slo_attainment_ratio",
    Kind.GAUGE,
    "Share of the ended requests that kept their SLO, over the last 60 seconds and the last hour.",
    ("class", "window"),
)
ATTAINMENT_TARGET: Final = Metric(
    "baton_slo_attainment_target_ratio", Kind.GAUGE, "Share of the requests that is promised to.", ("class",)
)
TENANT_REQUESTS: Final = Metric(
    "baton_tenant_requests_total",
    Kind.COUNTER,
    f"Requests ended, by tenant, of which the first {MAX_TENANTS} have a name, and SLO (kept, missed, neither).",
    ("tenant", "slo"),
)
REFUSALS: Final = Metric(
    "baton_refusals_total",
    Kind.COUNTER,
    "Requests refused before any work, by the name of the error.",
    ("class", "reason"),
)
HELD: Final = Metric(
    "baton_held_requests", Kind.GAUGE, "Requests that the router holds back until a worker has room for them."
)
PREFIX_TOKENS: Final = Metric(
    "baton_prefix_tokens_total",
    Kind.COUNTER,
    "Prompt tokens of requests that workers told of: all of them (prompt), those found in the cache of the worker that "
    "computed the prompt (actual), and those the router believed there (believed).",
    ("source",),
)
PREDICTION_RATIO: Final = Metric(
    "baton_prediction_ratio",
    Kind.HISTOGRAM,
    "Actual over predicted time, counted from the decision.",
    ("class", "quantity"),
    _RATIO,
)
_PREDICTION: Final = ("class", "quantity")
COVERAGE: Final = Metric(
    "baton_prediction_coverage_ratio",
    Kind.GAUGE,
    "Share of the latest outcomes within the interval predicted for them, meant to be 0.9.",
    _PREDICTION,
)
INTERVAL_FACTOR: Final = Metric(
    "baton_prediction_interval_factor",
    Kind.GAUGE,
    "Half the width of the interval, in spreads that costs claim.",
    _PREDICTION,
)
TRUSTED: Final = Metric(
    "baton_prediction_trusted",
    Kind.GAUGE,
    "1: predictions were seen to hold. 0: they did not, only what is measured counts. Absent: too little was seen.",
    _PREDICTION,
)
TRACES_DROPPED: Final = Metric(
    "baton_traces_dropped_total", Kind.COUNTER, "Requests whose spans the trace collector did not take in time."
)
INFLIGHT: Final = Metric("baton_inflight_requests", Kind.GAUGE, "Requests being served by this router.")
HANDOVER: Final = Metric(
    "baton_handover_total",
    Kind.COUNTER,
    "Prefill legs ended, by outcome: ok, refused, cancelled, or the name of the error.",
    ("outcome",),
)
RETRIES: Final = Metric(
    "baton_retries_total",
    Kind.COUNTER,
    "Requests tried on another worker, by the error that made it so.",
    ("reason",),
)
WORKER_PAIRS: Final = Metric(
    "baton_worker_pairs",
    Kind.GAUGE,
    "Pairs of a connected prefill and a connected decode worker of equal fingerprint, which can hand KV over.",
)
RESUMED: Final = Metric(
    "baton_streams_resumed_total",
    Kind.COUNTER,
    "Streams whose worker was lost, by what became of going on elsewhere: ok, or the name of the error.",
    ("outcome",),
)
_WORKER: Final = ("worker", "role")
WORKER_UP: Final = Metric(
    "baton_worker_up",
    Kind.GAUGE,
    "1 for a worker that is connected and takes requests, 0 for one that is only announced.",
    _WORKER,
)
WORKER_RUNNING: Final = Metric("baton_worker_running", Kind.GAUGE, "Requests in the worker's running batch.", _WORKER)
WORKER_WAITING: Final = Metric(
    "baton_worker_waiting", Kind.GAUGE, "Requests queued in the worker, those that wait for KV included.", _WORKER
)
WORKER_KV_USED: Final = Metric("baton_worker_kv_blocks_used", Kind.GAUGE, "KV blocks held by live requests.", _WORKER)
WORKER_KV_TOTAL: Final = Metric("baton_worker_kv_blocks", Kind.GAUGE, "KV blocks of the worker.", _WORKER)
WORKER_BREAKER: Final = Metric(
    "baton_worker_breaker_open", Kind.GAUGE, "1 for a worker that is left out because it failed repeatedly.", _WORKER
)

METRICS: Final = (
    REQUESTS,
    TTFT,
    TTFT_STAGE,
    TPOT,
    ITL,
    E2E,
    SLO_MET,
    SLO_MISSED,
    GOODPUT,
    ATTAINMENT,
    ATTAINMENT_TARGET,
    TENANT_REQUESTS,
    REFUSALS,
    HELD,
    PREFIX_TOKENS,
    PREDICTION_RATIO,
    COVERAGE,
    INTERVAL_FACTOR,
    TRUSTED,
    TRACES_DROPPED,
    INFLIGHT,
    HANDOVER,
    RETRIES,
    WORKER_PAIRS,
    RESUMED,
    WORKER_UP,
    WORKER_RUNNING,
    WORKER_WAITING,
    WORKER_KV_USED,
    WORKER_KV_TOTAL,
    WORKER_BREAKER,
)


def edges_with_targets(metric: Metric, targets_s: Iterable[float]) -> tuple[float, ...]:
    """Merge SLO targets into a histogram's edges, so that attainment is read off exactly."""
    return tuple(sorted({*metric.buckets_s, *targets_s}))
