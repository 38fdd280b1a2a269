"""Spans reach a collector over HTTP, or are dropped and counted; nobody waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.errors import ConfigError
from router.record import RequestRecord
from router.span_exporter import BATCH_REQUESTS, SpanExporter
from router.tracing import Tracer
from tests.support.collector import WAIT_S, Collector
from tests.support.records import begun, routed, streamed


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def ended(number: int = 0) -> RequestRecord:
    record = begun(f"r{number}")
    Tracer(NoSink(), clock=lambda: 10.0).began(record, None)
    return streamed(routed(record))


class NoSink:
    def offer(self, record: RequestRecord) -> None:
        raise AssertionError("the request has not ended")


def test_spans_arrive_soon_and_what_waits_arrives_at_the_close(collector: Collector) -> None:
    exporter = SpanExporter(collector.url, interval_s=0.01)
    exporter.offer(ended())
    assert collector.names() == [
        "text_completion /v1/completions", "queue", "prefill", "kv.transfer",
        "decode.blocks", "decode.first_step", "decode",
    ]  # fmt: skip
    exporter.close()
    late = SpanExporter(collector.url, interval_s=60.0)
    late.offer(ended())
    late.close()
    assert "prefill" in collector.names()
    assert exporter.dropped == late.dropped == 0


@pytest.mark.parametrize(("path", "asked"), [("", "/v1/traces"), ("/", "/v1/traces"), ("/otlp/x?k=v", "/otlp/x?k=v")])
def test_the_path_is_that_of_the_protocol_unless_one_is_named(collector: Collector, path: str, asked: str) -> None:
    exporter = SpanExporter(collector.url + path, interval_s=0.01)
    exporter.offer(ended())
    assert collector.requests.get(timeout=WAIT_S)[0] == asked
    exporter.close()


def test_a_full_queue_drops_and_counts(collector: Collector) -> None:
    collector.proceed.clear()
    exporter = SpanExporter(collector.url, max_waiting=BATCH_REQUESTS, interval_s=60.0)
    offered = 3 * BATCH_REQUESTS
    for number in range(offered):
        exporter.offer(ended(number))
    assert exporter.dropped >= offered - 2 * BATCH_REQUESTS  # one batch is on its way, one waits
    collector.proceed.set()
    exporter.close()
    sent = sum(body.count("queue") for body in (collector.names() for _ in range(collector.requests.qsize())))
    assert sent + exporter.dropped == offered


@pytest.mark.parametrize("status", [404, 500])
def test_a_collector_that_refuses_is_told_of_once(
    collector: Collector, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = status
    exporter = SpanExporter(collector.url, interval_s=0.01)
    for number in range(2):
        exporter.offer(ended(number))
        collector.requests.get(timeout=WAIT_S)
    exporter.close()
    assert exporter.dropped == 2
    assert [r.message.rpartition(": ")[2] for r in caplog.records] == [f"it answered {status}"]


def test_a_collector_that_is_not_there_does_not_hold_up_the_close(caplog: pytest.LogCaptureFixture) -> None:
    gone = Collector()
    gone.close()
    exporter = SpanExporter(gone.url, interval_s=60.0)
    for number in range(5 * BATCH_REQUESTS):
        exporter.offer(ended(number))
    exporter.close()
    assert exporter.dropped >= BATCH_REQUESTS
    assert len(caplog.records) == 1


@pytest.mark.parametrize("endpoint", ["collector:4317", "ftp://x/", "http://", ""])
def test_what_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"router\.otlp_endpoint.*http://127\.0\.0\.1:4318"):
        SpanExporter(endpoint)
