"""What is scraped is what the endpoint reports, in a form Prometheus parses."""

from prometheus_client.parser import text_string_to_metric_families

from kv_transfer.metrics import render
from tests.support.kv_side import MakeSide


def test_rendered_stats_parse_and_carry_the_values(make_side: MakeSide) -> None:
    prefill, decode = make_side(), make_side()
    prefill.offer(decode.address, "t", 2)
    prefill.send_all("t", [5, 1])
    decode.expect("t", [2, 0])
    decode.wait_finished("t")
    samples = scrape(decode.endpoint.stats())
    assert samples[("baton_kv_lease_blocks", "granted")] == 2
    assert samples[("baton_kv_lease_imbalance_blocks",)] == 0
    assert samples[("baton_kv_receives_total", "landed")] == 1
    assert samples[("baton_kv_landed_bytes_total",)] == decode.endpoint.receiver.bytes_landed > 0


def test_what_each_transport_carried_is_counted(make_side: MakeSide) -> None:
    counts = {"tcp": {"bytes": 7, "handovers": 2, "failures": 1}, "grpc": {"bytes": 0, "handovers": 0, "failures": 3}}
    samples = scrape(make_side().endpoint.stats() | {"transports": counts})
    assert samples[("baton_kv_transport_bytes_total", "tcp")] == 7
    assert samples[("baton_kv_transport_handovers_total", "tcp")] == 2
    assert samples[("baton_kv_transport_failures_total", "grpc")] == 3


def scrape(stats: dict[str, object]) -> dict[tuple[str, ...], float]:
    """Render and parse; samples by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(render(stats))
        for sample in family.samples
    }
