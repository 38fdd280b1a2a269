"""The OpenAI and vLLM routes that workers answer, as one table.

Owns which paths are relayed, how their bodies are read and what the schema says of them. Dispatch and /openapi.json
both come from it. Must not know workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from router.body import BodyFacts, chat_facts, completion_facts, no_facts, whole_facts


@dataclass(frozen=True, slots=True)
class Operation:
    """One relayed route."""

    method: str
    path: str
    summary: str
    read: Callable[[bytes], BodyFacts]
    required: tuple[str, ...] = ()  # fields its body must have, for the schema
    opening_events: int = 0  # of a stream, before the event of the first token
    generates: bool = True  # produces tokens: has an SLO, is measured and logged


_OPERATIONS: Final = (
    Operation("POST", "/v1/completions", "Complete a prompt", completion_facts, ("prompt",)),
    Operation("POST", "/v1/chat/completions", "Answer a conversation", chat_facts, ("messages",), 1),
    Operation("POST", "/v1/responses", "Create a response", whole_facts, ("input",)),
    Operation("POST", "/v1/messages", "Answer a conversation, Anthropic form", whole_facts, ("messages",)),
    Operation("GET", "/v1/models", "List the models", no_facts, generates=False),
    Operation("POST", "/tokenize", "Turn text into token ids", no_facts, generates=False),
    Operation("POST", "/detokenize", "Turn token ids into text", no_facts, ("tokens",), generates=False),
)

OPERATIONS: Final[Mapping[str, Operation]] = MappingProxyType({o.path: o for o in _OPERATIONS})
WORKER_METRICS: Final = re.compile(r"/workers/([^/]+)/metrics\Z")

_ERROR: Final = {
    "description": "Error",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": "integer"},
                        },
                    }
                },
            }
        }
    },
}


def relayed_paths() -> dict[str, object]:
    """Write the OpenAPI path items of every relayed route."""
    paths: dict[str, object] = {o.path: {o.method.lower(): _operation_schema(o)} for o in _OPERATIONS}
    worker_id = {"name": "worker_id", "in": "path", "required": True, "schema": {"type": "string"}}
    paths["/workers/{worker_id}/metrics"] = {
        "get": {
            "summary": "Write the engine metrics of one worker in Prometheus text",
            "operationId": "worker_metrics",
            "parameters": [worker_id],
            "responses": {"200": {"description": "OK", "content": {"text/plain": {}}}, "default": _ERROR},
        }
    }
    return paths


def _operation_schema(operation: Operation) -> dict[str, object]:
    replies: dict[str, object] = {"application/json": {"schema": {"type": "object"}}}
    if operation.generates:
        replies["text/event-stream"] = {"schema": {"type": "string"}}
    schema: dict[str, object] = {
        "summary": operation.summary,
        "description": "Answered by a worker: fields and reply are those of vLLM's route of the same path.",
        "operationId": operation.path.strip("/").replace("/", "_"),
        "parameters": [
            {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
            for name in ("x-request-id", "x-slo-class")
        ],
        "responses": {"200": {"description": "OK", "content": replies}, "default": _ERROR},
    }
    if operation.method == "POST":
        body = {"type": "object", "required": list(operation.required), "additionalProperties": True}
        schema["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return schema
