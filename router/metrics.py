"""What the router measures of itself, and how it is shown: /metrics and one log line for each request.

Owns the derivation of every metric from a finished request. Must not influence any request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from core import metrics as names
from core.errors import BatonError, DeadlineExceeded, RequestRejected
from core.router_spec import SLOTarget
from core.types import ClusterView, WorkerRecord
from router.exchange import ClientGone
from router.life import Life, Timing
from router.series import Counter, Histogram, Labels, RecentRate

GOODPUT_WINDOW_S: Final = 60

log = logging.getLogger("router.request")


class ClassSeries:
    """The series of one SLO class."""

    __slots__ = ("e2e", "goodput", "histograms", "met", "missed", "tpot", "ttft")

    def __init__(self, targets: tuple[SLOTarget, ...]) -> None:
        self.ttft = Histogram(names.edges_with_targets(names.TTFT, (t.ttft_s for t in targets)))
        self.tpot = Histogram(names.edges_with_targets(names.TPOT, (t.tpot_s for t in targets)))
        self.e2e = Histogram(names.edges_with_targets(names.E2E, (t.ttft_s for t in targets)))
        self.histograms = {names.TTFT.name: self.ttft, names.TPOT.name: self.tpot, names.E2E.name: self.e2e}
        self.met = 0
        self.missed = 0
        self.goodput = RecentRate(GOODPUT_WINDOW_S)


class RouterMetrics(Collector):
    """Takes notes while requests run and yields Prometheus families when asked."""

    def __init__(
        self,
        *,
        targets: tuple[SLOTarget, ...],
        view: Callable[[], ClusterView],
        announced: Callable[[], tuple[WorkerRecord, ...]],
        num_inflight: Callable[[], int],
    ) -> None:
        self._view = view
        self._announced = announced
        self._num_inflight = num_inflight
        self._classes = {t.name: ClassSeries(targets) for t in targets}
        self._requests = Counter()
        self._handovers = Counter()
        self._retries = Counter()
        self._itl = Histogram(names.edges_with_targets(names.ITL, (t.tpot_s for t in targets)))
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self.gap = self._itl.observe  # time between two arrivals of bytes in a stream, in seconds

    def retried(self, reason: str) -> None:
        """Count a request that is tried elsewhere because of the error called `reason`."""
        self._retries.add(reason)

    def handed_over(self, outcome: str) -> None:
        """Count a prefill leg that ended."""
        self._handovers.add(outcome)

    def finished(self, life: Life, failure: Exception | None) -> None:
        """Account for a request whose answer is out, and log it."""
        outcome = _outcome(life, failure)
        if not life.operation.generates:
            return
        self._requests.add(life.slo.name, outcome, life.leg)
        series = self._classes[life.slo.name]
        timing = life.timing()
        met: bool | None = None  # neither, when the client is the cause
        if outcome == "ok":
            met = timing.meets(life.slo)
            series.e2e.observe(timing.e2e_s)
            if timing.ttft_s is not None:
                series.ttft.observe(timing.ttft_s)
            if timing.tpot_s is not None:
                series.tpot.observe(timing.tpot_s)
        elif outcome not in ("client_gone", "client_error", "client_slow"):
            met = False
        if met:
            series.met += 1
            series.goodput.add(life.chunk_s)
        elif met is not None:
            series.missed += 1
        if log.isEnabledFor(logging.INFO):
            log.info("%s", _log_line(life, failure, outcome, timing, met))

    def render(self) -> bytes:
        """Write the Prometheus text of everything."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Family]:
        """Yield every family of core.metrics."""
        yield _counter(names.REQUESTS, self._requests.values.items())
        for metric in (names.TTFT, names.TPOT, names.E2E):
            series: dict[Labels, Histogram] = {(n,): s.histograms[metric.name] for n, s in self._classes.items()}
            yield _histogram(metric, series)
        yield _histogram(names.ITL, {(): self._itl})
        yield _counter(names.SLO_MET, (((n,), s.met) for n, s in self._classes.items()))
        yield _counter(names.SLO_MISSED, (((n,), s.missed) for n, s in self._classes.items()))
        now_s = asyncio.get_running_loop().time()
        yield _gauge(names.GOODPUT, (((n,), s.goodput.per_second(now_s)) for n, s in self._classes.items()))
        yield _gauge(names.INFLIGHT, [((), self._num_inflight())])
        yield _counter(names.HANDOVER, self._handovers.values.items())
        yield _counter(names.RETRIES, self._retries.values.items())
        yield from self._workers()

    def _workers(self) -> Iterable[Family]:
        workers = [((w.record.worker_id, w.record.role.value), w.state) for w in self._view().workers]
        up = {labels for labels, _ in workers}
        known = up | {(r.worker_id, r.role.value) for r in self._announced()}
        yield _gauge(names.WORKER_UP, ((k, k in up) for k in sorted(known)))
        yield _gauge(names.WORKER_RUNNING, ((k, s.num_running) for k, s in workers))
        yield _gauge(names.WORKER_WAITING, ((k, s.num_waiting) for k, s in workers))
        yield _gauge(names.WORKER_KV_USED, ((k, s.kv_blocks_used) for k, s in workers))
        yield _gauge(names.WORKER_KV_TOTAL, ((k, s.kv_blocks_total) for k, s in workers))


def _outcome(life: Life, failure: Exception | None) -> str:
    """Name how a request ended."""
    if failure is None:
        if life.status < 400:
            return "ok"
        return "client_error" if life.status < 500 else "worker_error"
    if isinstance(failure, ClientGone):
        return "client_gone"
    if isinstance(failure, DeadlineExceeded):
        return "timeout"
    if isinstance(failure, RequestRejected):
        if life.status < 400:  # a stream had begun: its bytes piled up behind a client that does not read
            return "client_slow"
        return "client_error" if life.status in (400, 401, 404, 413) else "rejected"
    return failure.name if isinstance(failure, BatonError) else "internal_error"


def _log_line(life: Life, failure: Exception | None, outcome: str, timing: Timing, met: bool | None) -> str:
    return orjson.dumps(
        {
            "event": "request",
            "time": round(time.time(), 3),
            "request_id": life.exchange.request_id,
            "path": life.operation.path,
            "status": life.status,
            "outcome": outcome,
            "error": str(failure) if failure is not None else None,
            "slo_class": life.slo.name,
            "slo_met": met,
            "leg": life.leg,
            "prefill": life.prefill,
            "decode": life.decode,
            "reason": life.reason,
            "attempts": life.attempts,
            "stream": life.facts.stream,
            "prompt_tokens_estimate": life.facts.prompt_tokens,
            "output_tokens": timing.output_tokens,
            "ttft_ms": None if timing.ttft_s is None else round(timing.ttft_s * 1000, 3),
            "tpot_ms": None if timing.tpot_s is None else round(timing.tpot_s * 1000, 3),
            "e2e_ms": round(timing.e2e_s * 1000, 3),
            "body_bytes": life.body_bytes,
        }
    ).decode()


def _counter(metric: names.Metric, values: Iterable[tuple[Labels, float]]) -> Family:
    family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _gauge(metric: names.Metric, values: Iterable[tuple[Labels, float]]) -> Family:
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family


def _histogram(metric: names.Metric, series: Mapping[Labels, Histogram]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, histogram in series.items():
        family.add_metric(labels, list(histogram.cumulative()), histogram.sum)
    return family
