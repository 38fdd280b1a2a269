"""/metrics: parsed by the reference parser, true of what happened."""

from __future__ import annotations

import json

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.metrics import METRICS
from tests.support.router_site import Site

PROMPT = {"prompt": "the sea was calm", "max_tokens": 5}


async def test_every_metric_is_exported_with_its_labels(pair: Site, client: httpx.AsyncClient) -> None:
    await client.post("/v1/completions", json=PROMPT | {"stream": True})
    reply = await client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    families = {f.name: f for f in text_string_to_metric_families(reply.text)}
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)


async def test_slo_targets_are_bucket_edges(pair: Site, client: httpx.AsyncClient) -> None:
    families = {f.name: f for f in text_string_to_metric_families((await client.get("/metrics")).text)}
    edges = {s.labels["le"] for s in families["baton_tpot_seconds"].samples if "le" in s.labels}
    assert {"5.0", "+Inf"} <= edges


async def test_counts_agree_with_requests(pair: Site, client: httpx.AsyncClient) -> None:
    for stream in (True, True, False):
        await client.post("/v1/completions", json=PROMPT | {"stream": stream})
    await client.post("/v1/completions", content=b"{")
    await client.get("/v1/models")  # makes no tokens, so it is not measured
    labels = {"class": "interactive"}
    assert await pair.metric("baton_requests_total") == 4
    assert await pair.metric("baton_requests_total", leg="pair", outcome="ok", **labels) == 3
    assert await pair.metric("baton_requests_total", leg="none", outcome="client_error", **labels) == 1
    assert await pair.metric("baton_ttft_seconds_count", **labels) == 2
    assert await pair.metric("baton_tpot_seconds_count", **labels) == 2
    assert await pair.metric("baton_e2e_seconds_count", **labels) == 3
    assert await pair.metric("baton_slo_met_total", **labels) == 3
    assert await pair.metric("baton_goodput_requests_per_second", **labels) == 3 / 60


async def test_workers_are_shown_and_missed(pair: Site, client: httpx.AsyncClient) -> None:
    labels = {"worker": "decode-0", "role": "decode"}
    assert await pair.metric("baton_worker_up", **labels) == 1
    assert await pair.metric("baton_worker_kv_blocks", **labels) == 4096
    await pair.workers["decode-0"].kill()
    await pair.until(lambda: "decode-0" not in pair.connected())
    assert await pair.metric("baton_worker_up", **labels) == 0
    assert await pair.metric("baton_worker_up") == 1
    assert await pair.metric("baton_worker_pairs") == 0


async def test_pairs_are_counted_by_equal_fingerprints(pair: Site) -> None:
    assert await pair.metric("baton_worker_pairs") == 1
    await pair.add_worker("decode-1")
    await pair.add_worker("decode-2", block_size=64)
    assert await pair.metric("baton_worker_pairs") == 2


async def test_one_log_line_for_each_request(
    pair: Site, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "router.request")
    await client.post("/v1/completions", json=PROMPT | {"stream": True}, headers={"x-request-id": "r1"})
    await client.post("/v1/completions", content=b"{", headers={"x-request-id": "r2"})
    await pair.until(lambda: any(r.name == "router.request" for r in caplog.records))
    (both,) = (r.message for r in caplog.records if r.name == "router.request")
    good, bad = map(json.loads, both.splitlines())
    assert (good["request_id"], good["outcome"], good["leg"], good["output_tokens"]) == ("r1", "ok", "pair", 5)
    assert (good["prefill"], good["decode"], good["slo_met"]) == ("prefill-0", "decode-0", True)
    assert good["ttft_ms"] > 0
    assert (bad["request_id"], bad["status"], bad["outcome"], bad["slo_met"]) == ("r2", 400, "client_error", None)
    assert "not valid JSON" in bad["error"]
