"""GET /v1/requests/{id}/explain and GET /status, as FastAPI serves them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request
from jsonschema import validate

from core.policy.calibration import WINDOW, Calibration
from core.types import ClusterView, HeldWork
from router.explain import Explainer
from router.explain_routes import add_explain, add_status
from router.explain_text import explanation_of
from router.metrics import RouterMetrics
from tests.support.records import FORECAST, SLO, TablePolicy, begun, held, streamed

KEYS = {"Bearer of-a": "a", "Bearer of-b": "b", "Bearer of-all": None}
VIEW = ClusterView(held=HeldWork((1.0, 2.0), (0, 10, 20)))


def tenant_of(request: Request) -> str | None:
    key = request.headers.get("authorization", "")
    if key not in KEYS:
        raise HTTPException(401, "no key")
    return KEYS[key]


@pytest.fixture
def calibration() -> Calibration:
    return Calibration(("chat",))


@pytest.fixture
async def client(calibration: Calibration) -> AsyncIterator[httpx.AsyncClient]:
    explainer = Explainer(TablePolicy(), clock=lambda: 10.5, max_requests=10)
    explainer.ended(streamed(held(begun("chat/1:x", tenant="a"))))
    metrics = RouterMetrics(targets=(SLO,), view=lambda: VIEW, announced=tuple, num_inflight=int)
    app = FastAPI()
    add_status(app, metrics, calibration, lambda: VIEW)
    add_explain(app, explainer, tenant_of)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as made:
        yield made


async def test_a_tenant_is_told_of_its_own_requests_only(client: httpx.AsyncClient) -> None:
    path = "/v1/requests/chat%2F1:x/explain"
    mine = await client.get(path, headers={"authorization": "Bearer of-a"})
    assert mine.status_code == 200
    told = explanation_of(mine.content)
    assert (told.request_id, told.verdict, told.actual.ttft_ms) == ("chat/1:x", "kept", 80.0)
    assert sum(round(stage.ms * 1000) for stage in told.timeline.stages) == 80_000
    others = await client.get(path, headers={"authorization": "Bearer of-b"})
    unknown = await client.get("/v1/requests/r9/explain", headers={"authorization": "Bearer of-b"})
    for reply, request_id in ((others, "chat/1:x"), (unknown, "r9")):
        assert reply.status_code == 404
        assert reply.json()["error"]["message"].startswith(f"no request '{request_id}' is known here")
    assert (await client.get(path)).status_code == 401


async def test_who_sees_all_is_told_of_every_request(client: httpx.AsyncClient) -> None:
    told = await client.get("/v1/requests/chat%2F1:x/explain", headers={"authorization": "Bearer of-all"})
    assert explanation_of(told.content).request_id == "chat/1:x"
    unknown = await client.get("/v1/requests/r9/explain", headers={"authorization": "Bearer of-all"})
    assert unknown.status_code == 404


async def test_the_answer_has_the_form_that_the_schema_says(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    reply = await client.get("/v1/requests/chat%2F1:x/explain", headers={"authorization": "Bearer of-a"})
    operation = schema["paths"]["/v1/requests/{request_id}/explain"]["get"]
    assert {p["name"] for p in operation["parameters"]} == {"request_id"}
    form = operation["responses"]["200"]["content"]["application/json"]["schema"]
    validate(reply.json(), {**form, "components": schema["components"]})


async def test_status_tells_how_promises_are_kept(client: httpx.AsyncClient, calibration: Calibration) -> None:
    for _ in range(WINDOW):
        calibration.observe("chat", FORECAST, ttft_s=3 * FORECAST.ttft_s)
    found = (await client.get("/status")).json()
    assert found["held_requests"] == 2
    [chat] = found["classes"]
    assert (chat["name"], chat["attainment_target"], chat["attainment_60s"]) == ("chat", 0.9, None)
    ttft, tpot = chat["predictions"]
    assert (ttft["quantity"], ttft["trusted"], ttft["coverage"]) == ("ttft", False, 0.0)
    assert ttft["reason"] == f"only 0 of the latest {WINDOW} outcomes were within their interval"
    assert ttft["refuted"]
    assert not tpot["refuted"]
    assert (tpot["quantity"], tpot["trusted"], tpot["coverage"], tpot["outcomes"]) == ("tpot", False, None, 0)
