"""Routes that FastAPI serves, and every answer to a route that does not exist."""

from __future__ import annotations

import httpx
import pytest

from router import VERSION
from router.routes import OPERATIONS
from tests.support.router_site import Site


@pytest.mark.parametrize(
    ("method", "path", "code", "allow"),
    [
        ("GET", "/nope", 404, None),
        ("POST", "/v1/embeddings", 404, None),
        ("GET", "/docs", 404, None),
        ("GET", "/v1/completions/", 404, None),
        ("GET", "/v1/completions", 405, "POST"),
        ("DELETE", "/v1/chat/completions", 405, "POST"),
        ("POST", "/v1/models", 405, "GET"),
        ("POST", "/health", 405, "GET"),
        ("POST", "/workers/decode-0/metrics", 405, "GET"),
        ("GET", "/workers/decode-9/metrics", 404, None),
    ],
)
async def test_unknown_routes_and_methods(
    pair: Site, client: httpx.AsyncClient, method: str, path: str, code: int, allow: str | None
) -> None:
    reply = await client.request(method, path)
    assert reply.status_code == code
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, code)
    if allow:
        assert allow in reply.headers["allow"]
        assert method in error["message"]


async def test_version_names_engine_and_router(site: Site, client: httpx.AsyncClient) -> None:
    assert (await client.get("/version")).json() == {"version": None, "baton": VERSION}
    await site.add_worker("decode-0")
    assert (await client.get("/version")).json() == {"version": "simulated", "baton": VERSION}


async def test_workers_are_listed(pair: Site, client: httpx.AsyncClient) -> None:
    workers = (await client.get("/workers")).json()["workers"]
    assert [(w["worker_id"], w["role"], w["model"]) for w in workers] == [
        ("decode-0", "decode", "sim"),
        ("prefill-0", "prefill", "sim"),
    ]
    assert workers[0]["address"] == pair.workers["decode-0"].record.address


async def test_prometheus_finds_every_worker_and_can_scrape_it(pair: Site, client: httpx.AsyncClient) -> None:
    found = (await client.get("/metrics/workers")).json()
    host = pair.url.removeprefix("http://")
    assert [(t["targets"], t["labels"]["worker"], t["labels"]["role"]) for t in found] == [
        ([host], "decode-0", "decode"),
        ([host], "prefill-0", "prefill"),
    ]
    for target in found:
        await client.get(target["labels"]["__metrics_path__"])
        engine = pair.workers[target["labels"]["worker"]].engine
        assert [(c.method, c.path) for c in engine.calls] == [("GET", "/metrics")]


async def test_engine_metrics_come_from_the_worker_named(pair: Site, client: httpx.AsyncClient) -> None:
    await client.get("/workers/decode-0/metrics")
    assert [(c.method, c.path) for c in pair.workers["decode-0"].engine.calls] == [("GET", "/metrics")]
    assert not pair.workers["prefill-0"].engine.calls


async def test_schema_lists_exactly_what_is_served(pair: Site, client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    served = {(m.upper(), path) for path, item in schema["paths"].items() for m in item}
    assert served >= {(o.method, o.path) for o in OPERATIONS.values()}
    assert {path for _, path in served} == {
        *OPERATIONS,
        "/health",
        "/ready",
        "/live",
        "/metrics",
        "/metrics/workers",
        "/version",
        "/load",
        "/status",
        "/v1/requests/{request_id}/explain",
        "/workers",
        "/workers/{worker_id}/metrics",
    }
    for method, path in served:
        reply = await client.request(method, path.replace("{worker_id}", "decode-0"), json={})
        message = reply.json()["error"]["message"] if reply.status_code in (404, 405) else ""
        assert "no route" not in message
        assert "takes" not in message
    ids = [op["operationId"] for item in schema["paths"].values() for op in item.values()]
    assert len(ids) == len(set(ids))
    assert schema["paths"]["/v1/completions"]["post"]["requestBody"]["required"] is True


async def test_query_reaches_the_worker(pair: Site, client: httpx.AsyncClient) -> None:
    await client.get("/v1/models?verbose=1")
    assert pair.workers["decode-0"].engine.calls[0].path == "/v1/models?verbose=1"
