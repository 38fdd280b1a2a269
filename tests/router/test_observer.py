"""An ended request is measured, compared with its prediction, remembered and traced, each once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.errors import ConfigError, Overloaded
from core.metrics import MAX_TENANTS
from core.policy.calibration import MIN_OUTCOMES, Calibration
from core.router_spec import RouterSpec, SLOTarget
from core.types import ClusterView, Rejection
from router.exchange import ClientGone
from router.explain import Explainer
from router.life import Life
from router.metrics import RouterMetrics
from router.observer import Observer
from router.record import RequestRecord
from router.tracing import Tracer
from tests.support.records import DECODE_FACTS, FORECAST, PREFILL_FACTS, ROUTE, SLO, TablePolicy, begun, life, routed


class Site:
    """An observer with all that it feeds."""

    def __init__(self, *slos: SLOTarget) -> None:
        self.calibration = Calibration(("chat",))
        self.explainer = Explainer(TablePolicy(), clock=lambda: 10.5, max_requests=10)
        self.traced: list[RequestRecord] = []
        self.metrics = RouterMetrics(
            targets=slos or (SLO,),
            view=ClusterView,
            announced=tuple,
            num_inflight=lambda: 0,
            calibration=self.calibration.report,
        )
        self.observer = Observer(
            metrics=self.metrics,
            explainer=self.explainer,
            calibration=self.calibration,
            tracer=Tracer(self, clock=lambda: 10.0),
        )

    def offer(self, record: RequestRecord) -> None:
        self.traced.append(record)

    def outcomes(self) -> list[int]:
        return [found.outcomes for found in self.calibration.report()]

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        families = {f.name: f for f in self.metrics.collect()}
        return {tuple(s.labels.values()): s.value for s in families[name].samples if "bucket" not in s.name}


def served(path: str = "/v1/completions") -> Life:
    """First byte after 80 ms, 20 ms for each further token."""
    made = life(path)
    made.status, made.decode, made.prefill = 200, "decode-0", "prefill-0"
    made.chunk(b"data: 1\n\n", 10.080)
    for number in range(1, 5):
        made.chunk(b"data: n\n\n", 10.080 + 0.02 * number)
    made.chunk(b"data: [DONE]\n\n", 10.160)
    return made


def answered(record: RequestRecord) -> RequestRecord:
    record.measured(PREFILL_FACTS, DECODE_FACTS)
    return record


async def test_everyone_learns_of_an_ended_request() -> None:
    site = Site()
    record = begun(tenant="acme")
    assert site.observer.began(record, None) is not None
    ended = served()
    ended.record = answered(routed(record))
    site.observer.answering(ended, 10.080)
    assert site.outcomes() == [1, 0]  # before its end
    site.observer.finished(ended, None, record)
    told = site.explainer.explain("r1", "acme")
    assert told is not None
    assert (told.state, told.verdict, told.actual.ttft_ms, told.actual.tpot_ms) == ("ended", "kept", 80.0, 20.0)
    assert site.outcomes() == [1, 1]
    assert site.traced == [record]
    assert site.samples("baton_tenant_requests") == {("acme", "kept"): 1}
    assert site.samples("baton_prefix_tokens") == {("prompt",): 512, ("actual",): 128, ("believed",): 96}
    stages = {k[0]: v for k, v in site.samples("baton_ttft_stage_seconds").items() if len(k) == 1 and v != 1}
    assert stages["prefill"] == pytest.approx(0.040)
    # 79 ms passed from the decision to the first byte, 72 were predicted.
    ratios = site.samples("baton_prediction_ratio")
    assert sum(ratios.values()) == pytest.approx(79 / 72 + 1.0)


async def test_the_stages_on_metrics_add_up_to_the_ttft() -> None:
    site = Site()
    for number in range(3):
        site.observer.finished(served(), None, answered(routed(begun(f"r{number}"))))
    families = {f.name: f for f in site.metrics.collect()}
    total = {n: [s for s in families[n].samples if s.name == f"{n}_sum"] for n in families}
    stages, ttft = total["baton_ttft_stage_seconds"], total["baton_ttft_seconds"]
    assert sum(s.value for s in stages) == pytest.approx(sum(s.value for s in ttft))
    counts = [s.value for s in families["baton_ttft_stage_seconds"].samples if s.name.endswith("_count")]
    assert set(counts) == {3}


async def test_a_failure_says_nothing_of_predictions() -> None:
    site = Site()
    record = routed(begun())
    failed = served()
    site.observer.finished(failed, ClientGone(), record)
    assert site.outcomes() == [0, 0]
    told = site.explainer.explain("r1", "")
    assert told is not None
    assert told.verdict == "client_gone"


async def test_admission_by_measure_hears_of_served_requests_only() -> None:
    """Else refusals would be the reason for further refusals."""
    site = Site()
    far_off = ROUTE._replace(forecast=FORECAST._replace(queue_s=0.0, prefill_s=0.001, transfer_s=0.0))
    for number in range(MIN_OUTCOMES):
        ended = served()
        ended.record = answered(routed(begun(f"r{number}"), far_off))
        site.observer.answering(ended, 10.080)
        site.observer.finished(ended, None, ended.record)
        refused = life()
        refused.status = 429
        site.observer.finished(
            refused, Overloaded("full"), routed(begun(f"x{number}"), Rejection("overloaded", "full"))
        )
    assert not site.calibration.trusted("chat")
    assert site.calibration.measured_attainment("chat") == 1.0
    assert site.samples("baton_refusals") == {("chat", "overloaded"): MIN_OUTCOMES}


async def test_a_second_try_says_nothing_of_the_prediction_of_the_first() -> None:
    site = Site()
    record = routed(begun())
    record.failed("worker_lost")
    ended = served()
    ended.record = answered(routed(record))
    site.observer.answering(ended, 10.080)
    site.observer.finished(ended, None, record)
    assert site.outcomes() == [0, 0]


async def test_a_request_without_a_record_is_only_measured() -> None:
    site = Site()
    site.observer.finished(served(), None, None)
    assert site.explainer.explain("r1", "") is None
    assert site.samples("baton_requests") == {("chat", "ok", "pair"): 1}


async def test_a_router_gets_all_of_it_from_its_spec() -> None:
    spec = RouterSpec("127.0.0.1", "", "", slo_classes=(SLO,), otlp_endpoint="http://127.0.0.1:9")
    observer = Observer.from_spec(spec, policy=TablePolicy(), view=ClusterView, announced=tuple, num_inflight=lambda: 0)
    record = begun()
    sent = observer.began(record, None)
    assert sent is not None
    observer.finished(served(), None, answered(routed(record)))
    observer.close()
    text = observer.metrics.render().decode()
    assert "baton_traces_dropped_total 1.0" in text
    assert "baton_prediction_trusted{" not in text  # of one outcome
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        Observer.from_spec(
            replace(spec, otlp_endpoint="x"),
            policy=TablePolicy(),
            view=ClusterView,
            announced=tuple,
            num_inflight=lambda: 0,
        )


async def test_tenants_beyond_the_bound_share_a_series() -> None:
    site = Site()
    known = [f"t{number}" for number in range(MAX_TENANTS)]
    for tenant in (*known, "c", "d", "t0"):
        site.observer.finished(served(), None, answered(routed(begun(tenant=tenant))))
    once = {(tenant, "kept"): 1 for tenant in known}
    assert site.samples("baton_tenant_requests") == once | {("t0", "kept"): 2, ("other", "kept"): 2}
