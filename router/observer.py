"""Everything that watches requests, behind two calls: one when a request begins, one when it has ended.

Owns the order in which an ended request is measured, calibrated, remembered and traced. Must not influence it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from core.policy.calibration import Calibration
from core.policy.protocol import Policy
from core.router_spec import RouterSpec
from core.types import ClusterView, WorkerRecord
from router.console.history import History
from router.explain import Explainer
from router.life import Life
from router.metrics import RouterMetrics
from router.record import RequestRecord
from router.recorder import TrafficRecorder
from router.span_exporter import SpanExporter
from router.tracing import Tracer
from router.traffic import TrafficMeter


class Observer:
    """Hands each request's record to those who read it; `close` it when no request runs."""

    def __init__(
        self,
        *,
        metrics: RouterMetrics,
        explainer: Explainer,
        calibration: Calibration,
        traffic: TrafficMeter | None = None,
        tracer: Tracer | None = None,
        exporter: SpanExporter | None = None,
        recorder: TrafficRecorder | None = None,
    ) -> None:
        self.recorder = recorder
        self.metrics = metrics
        self.explainer = explainer
        self.calibration = calibration
        self.history = History()
        self.traffic = TrafficMeter(()) if traffic is None else traffic
        self._tracer = tracer
        self._exporter = exporter

    @classmethod
    def from_spec(
        cls,
        spec: RouterSpec,
        *,
        policy: Policy,
        view: Callable[[], ClusterView],
        announced: Callable[[], tuple[WorkerRecord, ...]],
        num_inflight: Callable[[], int],
        open_breakers: Callable[[], Iterable[str]] = tuple,
        recorder: TrafficRecorder | None = None,
    ) -> Observer:
        """Make all that a router needs; marks are in the time of time.monotonic.

        Raises ConfigError when router.otlp_endpoint is no URL.
        """
        exporter = SpanExporter(spec.otlp_endpoint) if spec.otlp_endpoint else None
        calibration = Calibration(target.name for target in spec.slo_classes)
        metrics = RouterMetrics(
            targets=spec.slo_classes,
            view=view,
            announced=announced,
            num_inflight=num_inflight,
            calibration=calibration.report,
            open_breakers=open_breakers,
            traces_dropped=int if exporter is None else lambda: exporter.dropped,
        )
        return cls(
            metrics=metrics,
            explainer=Explainer(policy, clock=time.monotonic, max_requests=spec.explained_requests),
            calibration=calibration,
            traffic=TrafficMeter(spec.slo_classes),
            tracer=None if exporter is None else Tracer(exporter, clock=time.monotonic),
            exporter=exporter,
            recorder=recorder,
        )

    def began(self, record: RequestRecord, traceparent: str | None = None) -> str | None:
        """Take up a request with the `traceparent` it brought; return the one to send on, None: leave it as it is."""
        self.explainer.began(record)
        self.traffic.began(record)
        return None if self._tracer is None else self._tracer.began(record, traceparent)

    def answering(self, life: Life, now_s: float) -> None:
        """Compare the TTFT of a stream, whose first bytes are here: what it says concerns the next ones already."""
        record = life.record
        if (forecast := record.forecast) is not None and not record.tries:
            self.calibration.observe(record.slo.name, forecast, ttft_s=now_s - life.arrived_s - record.waited_s)

    def finished(self, life: Life, failure: Exception | None, record: RequestRecord | None) -> None:
        """Complete the record of a request whose answer is out, and let everyone learn from it.

        None: it was refused before it had an id, or makes no tokens, so that nobody can ask for it.
        """
        measured = self.metrics.finished(life, failure, record)
        if measured is not None:
            self.history.ended(measured)
            if self.recorder is not None:
                self.recorder.ended(measured, life)
        if record is None:
            return
        if record.kept is not None and record.outcome != "rejected":
            self.calibration.served(record.slo.name, record.kept)
        if record.outcome == "ok" and record.forecast is not None:
            self._compare(record)
        self.explainer.ended(record)
        self.traffic.ended(record)
        if self._tracer is not None:
            self._tracer.ended(record)

    def close(self) -> None:
        """Write and send what waits; takes span_exporter.CLOSE_S at most."""
        self.metrics.flush_log()
        if self._exporter is not None:
            self._exporter.close()

    def _compare(self, record: RequestRecord) -> None:
        """Hold what was predicted against what came; a route taken again after a failure was not predicted to fail."""
        forecast, ttft_s = record.forecast, record.actual_ttft_s
        if forecast is None or record.tries:
            return
        # Of a stream the first token was compared when it came.
        since_decision_s = None if ttft_s is None or record.ttft_s is not None else ttft_s - record.waited_s
        self.calibration.observe(record.slo.name, forecast, ttft_s=since_decision_s, tpot_s=record.tpot_s)
