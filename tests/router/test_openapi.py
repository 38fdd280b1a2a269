"""The OpenAPI document is true: whatever the router answers is described there, headers and bodies included."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import jsonschema
import pytest

from core import errors
from core.types import Rejection
from router.errors import STATUS_BY_ERROR, answer, refusal
from router.routes import OPERATIONS
from tests.support.openapi import Described
from tests.support.router_site import MODEL, Site

PROMPT = {"model": MODEL, "prompt": "the sea", "max_tokens": 3}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "the sea"}], "max_tokens": 3}


async def document(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get("/openapi.json")).json()
    return found


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/completions", PROMPT, {}, 200),
        ("/v1/completions", PROMPT | {"stream": True}, {}, 200),
        ("/v1/completions", PROMPT | {"priority": -5}, {"x-slo-class": "interactive"}, 200),
        ("/v1/chat/completions", CHAT, {"x-request-id": "a-1"}, 200),
        ("/v1/chat/completions", CHAT | {"stream": True, "stream_options": {"include_usage": True}}, {}, 200),
        ("/v1/completions", [], {}, 400),
        ("/v1/completions", {"prompt": {}}, {}, 400),
        ("/v1/completions", PROMPT | {"max_tokens": 1 << 40}, {}, 400),
        ("/v1/completions", PROMPT | {"priority": "high"}, {}, 400),
        ("/v1/completions", PROMPT, {"x-slo-class": "none"}, 400),
        ("/v1/completions", PROMPT, {"x-request-id": "a b"}, 400),
        ("/v1/completions", PROMPT | {"model": "other"}, {}, 404),
        ("/v1/responses", {"input": "a"}, {}, 404),
        ("/tokenize", {"prompt": "a"}, {}, 404),
    ],
)
async def test_answers_of_a_healthy_cluster_are_described(
    pair: Site, client: httpx.AsyncClient, path: str, body: object, headers: dict[str, str], status: int
) -> None:
    reply = await client.post(path, json=body, headers=headers)
    assert reply.status_code == status, reply.text
    described = Described(await document(client))
    if status != 404:  # those are the worker's own
        described.check("POST", path, reply)
    else:
        described.check_json(reply.json(), described.error(404))
    assert reply.headers["x-request-id"]


async def test_answers_at_the_limits_are_described(tight: Site) -> None:
    async with httpx.AsyncClient(base_url=tight.url, timeout=20) as client:
        described = Described(await document(client))
        large = await client.post("/v1/completions", json=PROMPT | {"prompt": "x" * 2000})
        # The KV never comes, so that one of them is never done, and the other is one too many.
        two = await asyncio.gather(*(client.post("/v1/completions", json=PROMPT) for _ in range(2)))
    for reply in (large, *two):
        described.check("POST", "/v1/completions", reply)
    assert large.status_code == 413
    assert sorted(reply.status_code for reply in two) == [429, 504]


async def test_answers_without_workers_are_described(site: Site, client: httpx.AsyncClient) -> None:
    described = Described(await document(client))
    for method, path, body in (("POST", "/v1/completions", PROMPT), ("GET", "/v1/models", None)):
        reply = await client.request(method, path, json=body)
        assert reply.status_code == 503
        described.check(method, path, reply)
    for path in ("/health", "/live", "/ready", "/metrics", "/version", "/workers"):
        described.check("GET", path, await client.get(path))


@pytest.mark.parametrize("cls", STATUS_BY_ERROR, ids=lambda c: c.name)
async def test_every_error_is_described(site: Site, client: httpx.AsyncClient, cls: type[errors.BatonError]) -> None:
    described = Described(await document(client))
    status, headers, body = answer(cls("why"))
    reply = httpx.Response(status, headers=headers, content=body)
    described.check("POST", "/v1/completions", reply)
    words = (await document(client))["paths"]["/v1/completions"]["post"]["responses"][str(status)]
    assert cls.name in words["headers"]["x-baton-reason"]["description"]


async def test_a_refusal_with_its_time_is_described(site: Site, client: httpx.AsyncClient) -> None:
    described = Described(await document(client))
    rejection = Rejection("slo_infeasible", "full", retry_after_s=2.0, earliest_s=1.5, confidence=0.9)
    body = json.loads(answer(refusal(rejection, slo_class="chat"))[2])
    described.check_json(body, described.error(429))
    del body["error"]["earliest_feasible_ms"]
    with pytest.raises(jsonschema.ValidationError):
        described.check_json(body, described.error(429))


async def test_the_document_is_whole(site: Site, client: httpx.AsyncClient) -> None:
    found = await document(client)
    assert found["openapi"].startswith("3.1")
    assert set(_references(found)) <= {f"#/components/schemas/{name}" for name in found["components"]["schemas"]}
    for operation in OPERATIONS.values():
        item = found["paths"][operation.path][operation.method.lower()]
        assert item["security"] == [{}, {"key": []}]
        if operation.method == "POST":
            schema = item["requestBody"]["content"]["application/json"]["schema"]
            jsonschema.Draft202012Validator.check_schema(schema)
            assert set(operation.required) <= set(schema["properties"])


def _references(node: object) -> list[str]:
    if isinstance(node, Mapping):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for child in node.values() for ref in _references(child)]
    if isinstance(node, list):
        return [ref for child in node for ref in _references(child)]
    return []


async def test_the_route_that_explains_is_described(site: Site) -> None:
    await site.add_worker("decode-0")
    async with httpx.AsyncClient(base_url=site.url) as client:
        item = (await document(client))["paths"]["/v1/requests/{request_id}/explain"]
        assert sorted(item["get"]["responses"]) == ["200", "401", "404", "422"]


async def test_load_has_the_form_of_vllms_route(site: Site) -> None:
    async with httpx.AsyncClient(base_url=site.url) as client:
        assert (await client.get("/load")).json() == {"server_load": 0}
        Described(await document(client)).check("GET", "/load", await client.get("/load"))
