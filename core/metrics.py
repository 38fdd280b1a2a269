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
    """One metric; `buckets_s` are the upper edges of a histogram without +Inf."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets_s: tuple[float, ...] = ()


# Edges in steps of about 1.6 to 2.5: from one step of a small model to a queue of long prompts.
_WAIT_S: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_STEP_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_WHOLE_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)

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
WORKER_KV_TOTAL: Final = Metric("baton_worker_kv_blocks_total", Kind.GAUGE, "KV blocks of the worker.", _WORKER)

METRICS: Final = (
    REQUESTS,
    TTFT,
    TPOT,
    ITL,
    E2E,
    SLO_MET,
    SLO_MISSED,
    GOODPUT,
    INFLIGHT,
    HANDOVER,
    RETRIES,
    WORKER_UP,
    WORKER_RUNNING,
    WORKER_WAITING,
    WORKER_KV_USED,
    WORKER_KV_TOTAL,
)


def edges_with_targets(metric: Metric, targets_s: Iterable[float]) -> tuple[float, ...]:
    """Merge SLO targets into a histogram's edges, so that attainment is read off exactly."""
    return tuple(sorted({*metric.buckets_s, *targets_s}))
