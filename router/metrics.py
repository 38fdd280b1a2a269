"""What the router measures of itself, and how it is shown on /metrics.

Owns the derivation of every metric from an ended request. Must not influence any request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

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
from core.policy.calibration import Coverage
from core.policy.protocol import Candidates
from core.router_spec import SLOTarget
from core.types import ClusterView, WorkerRecord
from router.exchange import ClientGone
from router.life import Life
from router.record import RequestRecord
from router.request_log import RequestLog
from router.series import Counter, Histogram, Labels, RecentShare, StageHistograms
from router.timeline import STAGES

GOODPUT_WINDOW_S: Final = 60
_CLIENTS_OWN: Final = frozenset(("client_gone", "client_error", "client_slow"))


class ClassSeries:
    """The series of one SLO class."""

    __slots__ = ("e2e", "histograms", "met", "missed", "recent", "target", "tpot", "tpot_ratio", "ttft", "ttft_ratio")

    def __init__(self, target: SLOTarget, targets: tuple[SLOTarget, ...]) -> None:
        self.target = target
        self.ttft = Histogram(names.edges_with_targets(names.TTFT, (t.ttft_s for t in targets)))
        self.tpot = Histogram(names.edges_with_targets(names.TPOT, (t.tpot_s for t in targets)))
        self.e2e = Histogram(names.edges_with_targets(names.E2E, (t.ttft_s for t in targets)))
        self.histograms = {names.TTFT.name: self.ttft, names.TPOT.name: self.tpot, names.E2E.name: self.e2e}
        self.ttft_ratio = Histogram(names.PREDICTION_RATIO.buckets_s)
        self.tpot_ratio = Histogram(names.PREDICTION_RATIO.buckets_s)
        self.met = 0
        self.missed = 0
        self.recent = RecentShare(max(names.ATTAINMENT_WINDOWS_S.values()))


class RouterMetrics(Collector):
    """Takes notes while requests run and yields Prometheus families when asked."""

    def __init__(
        self,
        *,
        targets: tuple[SLOTarget, ...],
        view: Callable[[], ClusterView],
        announced: Callable[[], tuple[WorkerRecord, ...]],
        num_inflight: Callable[[], int],
        calibration: Callable[[], tuple[Coverage, ...]] = tuple,
        open_breakers: Callable[[], Iterable[str]] = tuple,
        traces_dropped: Callable[[], int] = int,
    ) -> None:
        """Take what is asked only when metrics are read; `open_breakers` are the ids of workers left out."""
        self._view = view
        self._announced = announced
        self._num_inflight = num_inflight
        self._calibration = calibration
        self._open_breakers = open_breakers
        self._traces_dropped = traces_dropped
        self._classes = {t.name: ClassSeries(t, targets) for t in targets}
        self._requests = Counter()
        self._refusals = Counter()
        self._tenants = Counter()
        self._named_tenants: set[str] = set()  # those with series of their own
        self._handovers = Counter()
        self._retries = Counter()
        self._resumes = Counter()
        self._stages = StageHistograms(STAGES, names.edges_with_targets(names.TTFT_STAGE, (t.ttft_s for t in targets)))
        self._prefix_tokens = {"prompt": 0, "actual": 0, "believed": 0}
        self._itl = Histogram(names.edges_with_targets(names.ITL, (t.tpot_s for t in targets)))
        self._request_log = RequestLog()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self.gap = self._itl.observe  # time between two arrivals of bytes in a stream, in seconds
        self.flush_log = self._request_log.flush

    def retried(self, reason: str) -> None:
        """Count a request that is tried elsewhere because of the error called `reason`."""
        self._retries.add(reason)

    def resumed(self, outcome: str) -> None:
        """Count a try to go on with a stream at another worker."""
        self._resumes.add(outcome)

    def handed_over(self, outcome: str) -> None:
        """Count a prefill leg that ended."""
        self._handovers.add(outcome)

    def finished(
        self, life: Life, failure: Exception | None, record: RequestRecord | None = None
    ) -> RequestRecord | None:
        """Complete the record of a request whose answer is out, account for it, log it, and return it.

        None: the request makes no tokens, so that nothing is measured.
        """
        if not life.operation.generates:
            return None
        if record is None:
            record = RequestRecord(life.exchange.request_id, "", life.slo, life.arrived_s, path=life.operation.path)
        _complete(record, life, failure)
        self._requests.add(record.slo.name, record.outcome, life.leg)
        series = self._classes[record.slo.name]
        if record.kept is None:
            slo = "neither"
        else:
            slo = "kept" if record.kept else "missed"
            series.met += record.kept
            series.missed += not record.kept
            series.recent.add(life.chunk_s, record.kept)
        if record.outcome == "ok":
            self._answered(series, record)
        elif record.outcome == "rejected":
            self._refusals.add(record.slo.name, record.refusal)
        if record.tenant:
            self._tenants.add(self._tenant_label(record.tenant), slo)
        self._request_log.add(record, life)
        return record

    def _answered(self, series: ClassSeries, record: RequestRecord) -> None:
        series.e2e.observe(record.e2e_s)
        if record.ttft_s is not None:
            series.ttft.observe(record.ttft_s)
        if record.tpot_s is not None:
            series.tpot.observe(record.tpot_s)
        line = record.timeline
        if line is not None and line.until != "end":
            self._stages.observe_us(line.stages_us)
        facts = record.prefill_facts or record.answering_facts
        if facts is not None:
            worker_id = record.decode if record.prefill_facts is None else record.prefill
            self._prefix_tokens["prompt"] += facts.prompt_tokens
            self._prefix_tokens["actual"] += facts.cached_tokens
            self._prefix_tokens["believed"] += record.believed_cached(worker_id)
        forecast = record.forecast
        if forecast is None:
            return
        ttft_s, predicted_s = record.actual_ttft_s, record.predicted_ttft_s - record.waited_s
        if ttft_s is not None and predicted_s > 0:
            series.ttft_ratio.observe((ttft_s - record.waited_s) / predicted_s)
        if record.tpot_s is not None and forecast.tpot_s > 0:
            series.tpot_ratio.observe(record.tpot_s / forecast.tpot_s)

    def _tenant_label(self, tenant: str) -> str:
        """Name the first tenants; labels must stay few whatever a file of tenants holds."""
        if tenant in self._named_tenants:
            return tenant
        if len(self._named_tenants) < names.MAX_TENANTS:
            self._named_tenants.add(tenant)
            return tenant
        return names.OTHER_TENANTS

    @property
    def attainment_targets(self) -> dict[str, float]:
        """The share of its requests that each class is promised."""
        return {name: series.target.attainment for name, series in self._classes.items()}

    def attainment(self, slo_class: str, window_s: int) -> float | None:
        """The share of a class's requests that kept their SLO lately; None when none ended."""
        now_s = time.monotonic()
        kept, total = self._classes[slo_class].recent.counts(now_s, window_s)
        return kept / total if total else None

    def render(self) -> bytes:
        """Write the Prometheus text of everything."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Family]:
        """Yield every family of core.metrics."""
        yield _counter(names.REQUESTS, self._requests.values.items())
        for metric in (names.TTFT, names.TPOT, names.E2E):
            series: dict[Labels, Histogram] = {(n,): s.histograms[metric.name] for n, s in self._classes.items()}
            yield _histogram(metric, series)
        yield self._stage_family()
        yield _histogram(names.ITL, {(): self._itl})
        yield from self._promises()
        yield _counter(names.TENANT_REQUESTS, self._tenants.values.items())
        yield _counter(names.REFUSALS, self._refusals.values.items())
        yield _gauge(names.HELD, [((), len(self._view().held.keys_s))])
        yield _counter(names.PREFIX_TOKENS, (((source,), n) for source, n in self._prefix_tokens.items()))
        yield from self._predictions()
        yield _counter(names.TRACES_DROPPED, [((), self._traces_dropped())])
        yield _gauge(names.INFLIGHT, [((), self._num_inflight())])
        yield _counter(names.HANDOVER, self._handovers.values.items())
        yield _counter(names.RETRIES, self._retries.values.items())
        yield _counter(names.RESUMED, self._resumes.values.items())
        yield from self._workers()

    def _stage_family(self) -> Family:
        metric = names.TTFT_STAGE
        family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for stage, sum_s, buckets in self._stages.cumulative():
            family.add_metric((stage,), buckets, sum_s)
        return family

    def _promises(self) -> Iterable[Family]:
        classes = self._classes.items()
        yield _counter(names.SLO_MET, (((n,), s.met) for n, s in classes))
        yield _counter(names.SLO_MISSED, (((n,), s.missed) for n, s in classes))
        now_s = time.monotonic()
        kept = {n: s.recent.counts(now_s, GOODPUT_WINDOW_S)[0] for n, s in classes}
        yield _gauge(names.GOODPUT, (((n,), count / GOODPUT_WINDOW_S) for n, count in kept.items()))
        shares = (
            ((n, window), self.attainment(n, window_s))
            for n in self._classes
            for window, window_s in names.ATTAINMENT_WINDOWS_S.items()
        )
        yield _gauge(names.ATTAINMENT, ((labels, share) for labels, share in shares if share is not None))
        yield _gauge(names.ATTAINMENT_TARGET, (((n,), s.target.attainment) for n, s in classes))

    def _predictions(self) -> Iterable[Family]:
        ratios: dict[Labels, Histogram] = {
            (name, quantity): histogram
            for name, series in self._classes.items()
            for quantity, histogram in (("ttft", series.ttft_ratio), ("tpot", series.tpot_ratio))
        }
        yield _histogram(names.PREDICTION_RATIO, ratios)
        found = [((c.slo_class, c.quantity), c) for c in self._calibration()]
        yield _gauge(names.COVERAGE, ((k, c.coverage) for k, c in found if c.coverage is not None))
        yield _gauge(names.INTERVAL_FACTOR, ((k, c.factor) for k, c in found))
        # While too little was seen there is nothing to raise an alarm about.
        yield _gauge(names.TRUSTED, ((k, c.trusted) for k, c in found if c.trusted or c.is_refuted))

    def _workers(self) -> Iterable[Family]:
        view = self._view()
        workers = [((w.record.worker_id, w.record.role.value), w.state) for w in view.workers]
        up = {labels for labels, _ in workers}
        known = up | {(r.worker_id, r.role.value) for r in self._announced()}
        open_breakers = frozenset(self._open_breakers())
        yield _gauge(names.WORKER_PAIRS, [((), Candidates.of(view).num_pairs)])
        yield _gauge(names.WORKER_UP, ((k, k in up) for k in sorted(known)))
        yield _gauge(names.WORKER_RUNNING, ((k, s.num_running) for k, s in workers))
        yield _gauge(names.WORKER_WAITING, ((k, s.num_waiting) for k, s in workers))
        yield _gauge(names.WORKER_KV_USED, ((k, s.kv_blocks_used) for k, s in workers))
        yield _gauge(names.WORKER_KV_TOTAL, ((k, s.kv_blocks_total) for k, s in workers))
        yield _gauge(names.WORKER_BREAKER, ((k, k[0] in open_breakers) for k in sorted(known)))


def _complete(record: RequestRecord, life: Life, failure: Exception | None) -> None:
    """Write down how the request ended."""
    outcome, timing, slo = _outcome(life, failure), life.timing(), record.slo
    record.status, record.outcome = life.status, outcome
    if failure is not None:
        record.error = str(failure)
    if outcome == "rejected":
        record.refusal = failure.name if isinstance(failure, BatonError) else "other"
    record.ttft_s, record.tpot_s, record.e2e_s = timing.ttft_s, timing.tpot_s, timing.e2e_s
    record.output_tokens = timing.output_tokens
    if outcome == "ok":
        record.kept = timing.meets(slo)
    elif outcome not in _CLIENTS_OWN:
        record.kept = False
    ended_s = life.chunk_s if life.body_bytes else time.monotonic()
    record.ended(ended_s, first_s=life.first_s)


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
        return "client_error" if life.status in (400, 401, 403, 404, 413) else "rejected"
    return failure.name if isinstance(failure, BatonError) else "internal_error"


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
