"""What the OpenAPI document says of the relayed routes: parameters, bodies, answers, errors.

Owns that it is true of what is served; tests/router/test_openapi.py holds every answer against it. Bodies are vLLM's
own, so that only the fields that the router reads are described, and any other is let through. Must not serve anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final, TypeAlias

from core import errors
from router.errors import STATUS_BY_ERROR
from router.routes import OPERATIONS, Operation

Schema: TypeAlias = dict[str, object]

_ERROR: Final = "#/components/schemas/Error"
_REFUSAL: Final = "#/components/schemas/Refusal"
# What a worker's OpenAI layer, or the router, answers with; "default" stands for what a broken connection gets.
_GENERATING: Final = (400, 401, 403, 404, 413, 429, 500, 502, 503, 504)
_OTHER: Final = (400, 401, 404, 413, 429, 500, 502, 503, 504)
_WORDS: Final[Mapping[int, str]] = {
    400: "The body, a field or a header is wrong; `param` names it",
    401: "The API key is missing or unknown",
    403: "The SLO class is not open to this tenant",
    404: "No such model, route, worker or request",
    413: "The body is larger than the router takes",
    429: "Refused for now: a limit is reached, or the SLO cannot be kept",
    500: "An error of the server",
    502: "The worker was lost",
    503: "No worker can serve now, or the router is stopping",
    504: "The request lived longer than the router allows",
}
_WAITING: Final = frozenset({429, 502, 503})
_OWN: Final = frozenset({401, 403, 413, 429})  # no worker answers with these, so that their headers are sure

_INTEGER: Final[Schema] = {"type": ["integer", "null"]}
_BOOLEAN: Final[Schema] = {"type": ["boolean", "null"]}
_TOKENS: Final[Schema] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_SAMPLING: Final[Schema] = {
    "model": {"type": ["string", "null"], "description": "name of the model or adapter; null: the base model"},
    "stream": {**_BOOLEAN, "description": "answer as server-sent events, ended by `data: [DONE]`"},
    "priority": {
        "type": ["integer", "null"],
        "minimum": -(1 << 31),
        "maximum": (1 << 31) - 1,
        "description": "order within the SLO class: less is sooner",
    },
}
_LIMITED: Final[Schema] = {
    "max_tokens": {**_INTEGER, "minimum": 0},
    "n": {**_INTEGER, "minimum": 1},
    "stream_options": {
        "type": ["object", "null"],
        "properties": {"include_usage": _BOOLEAN},
        "description": "include_usage: one more event with the totals",
    },
}
_MESSAGES: Final[Schema] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}},
}
_FIELDS: Final[Mapping[str, Schema]] = {
    "/v1/completions": {
        "prompt": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
                _TOKENS,
                {"type": "array", "items": _TOKENS, "minItems": 1},
            ]
        },
        **_SAMPLING,
        **_LIMITED,
    },
    "/v1/chat/completions": {
        "messages": _MESSAGES,
        "max_completion_tokens": {**_INTEGER, "minimum": 0},
        **_SAMPLING,
        **_LIMITED,
    },
    "/v1/responses": {"input": {"type": ["string", "array"]}, **_SAMPLING},
    "/v1/messages": {"messages": _MESSAGES, "max_tokens": {"type": "integer", "minimum": 1}, **_SAMPLING},
    "/tokenize": {"prompt": {"type": "string"}, "messages": _MESSAGES},
    "/detokenize": {"tokens": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
}


def relayed_paths() -> Schema:
    """Write the path items of every relayed route."""
    paths: Schema = {o.path: {o.method.lower(): _operation(o)} for o in OPERATIONS.values()}
    paths["/workers/{worker_id}/metrics"] = {
        "get": {
            "summary": "Write the engine metrics of one worker in Prometheus text",
            "operationId": "worker_metrics",
            "parameters": [_path_parameter("worker_id"), _header("x-request-id")],
            "responses": _answers({"text/plain": {"schema": {"type": "string"}}}, _OTHER),
        }
    }
    return paths


def components() -> dict[str, Schema]:
    """Write what the path items refer to."""
    fields: Schema = {
        "message": {"type": "string"},
        "type": {"type": "string", "description": "stable name of the error"},
        "param": {"type": ["string", "null"], "description": "the field or header at fault"},
        "code": {"type": "integer", "description": "the HTTP status"},
    }
    refused: Schema = {
        **fields,
        "code": {"type": "integer", "const": 429},
        "slo_class": {"type": ["string", "null"]},
        "earliest_feasible_ms": {
            "type": ["integer", "null"],
            "minimum": 0,
            "description": "from now: when an equal request is expected to be admitted and to keep its SLO",
        },
        "confidence": {"type": ["number", "null"], "minimum": 0, "maximum": 1, "description": "that it is"},
    }
    return {
        "schemas": {"Error": _error_schema(fields), "Refusal": _error_schema(refused)},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }


def _answers(content: Schema, codes: Iterable[int]) -> Schema:
    """Write the responses of a route: its content, these failures, and any other."""
    answers: Schema = {"200": _answer("OK", content)}
    answers |= {str(code): _error_answer(code) for code in codes}
    answers["default"] = _answer("Any other failure", _content(_ERROR))
    return answers


def _error_answer(code: int) -> Schema:
    sure = code in _OWN
    headers: Schema = {"x-baton-reason": _answer_header(f"one of {_names_of(code)}", required=sure)}
    if code in _WAITING:
        words = "whole seconds until it is worth another try"
        headers["Retry-After"] = _answer_header(words, "integer", required=sure)
    if code == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = _answer_header("the scheme, which is Bearer", required=True)
    answer = _answer(_WORDS[code], _content(_REFUSAL if code == HTTPStatus.TOO_MANY_REQUESTS else _ERROR))
    return {**answer, "headers": headers}


def _names_of(code: int) -> str:
    names = sorted(cls.name for cls, status in STATUS_BY_ERROR.items() if status.code == code)
    return ", ".join(names) or errors.BatonError.name


def _operation(operation: Operation) -> Schema:
    answers: Schema = {"application/json": {"schema": {"type": "object"}}}
    names = ["x-request-id"]
    if operation.generates:
        answers["text/event-stream"] = {}  # each event's data is JSON, the last one's is [DONE]
        names += ["x-slo-class", "x-slo-ttft-ms", "x-slo-tpot-ms", "traceparent"]
    codes = _GENERATING if operation.generates else _OTHER
    schema: Schema = {
        "summary": operation.summary,
        "description": "Answered by a worker: fields and reply are those of vLLM's route of the same path.",
        "operationId": operation.path.strip("/").replace("/", "_"),
        "security": _SECURITY,
        "parameters": [_header(name) for name in names],
        "responses": _answers(answers, codes),
    }
    if operation.method == "POST":
        body = {
            "type": "object",
            "required": list(operation.required),
            "properties": _FIELDS[operation.path],
            "additionalProperties": True,
        }
        schema["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return schema


_SECURITY: Final[list[Schema]] = [{}, {"key": []}]  # a key is asked for where router.tenants is set
_TARGET: Final = "of this request, in milliseconds, in the place of its class's; alias x-llm-d-slo-{}-ms"
_HEADERS: Final[Mapping[str, Schema]] = {
    "x-request-id": {
        "schema": {"type": "string", "pattern": r"^[A-Za-z0-9_.:/+=@-]{1,128}$"},
        "description": "name of the request in logs and answers; without it the router makes one",
    },
    "x-slo-class": {"schema": {"type": "string"}, "description": "one of slo.classes; without it the default holds"},
    "x-slo-ttft-ms": {
        "schema": {"type": "number", "minimum": 1, "maximum": 3_600_000},
        "description": "target for the time to the first token " + _TARGET.format("ttft"),
    },
    "x-slo-tpot-ms": {
        "schema": {"type": "number", "minimum": 0.1, "maximum": 600_000},
        "description": "target for the time per output token " + _TARGET.format("tpot"),
    },
    "traceparent": {"schema": {"type": "string"}, "description": "W3C trace context that the request belongs to"},
}


def _header(name: str) -> Schema:
    return {"name": name, "in": "header", "required": False, **_HEADERS[name]}


def _path_parameter(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _answer(description: str, content: Schema) -> Schema:
    return {"description": description, "content": content}


def _answer_header(description: str, kind: str = "string", *, required: bool) -> Schema:
    return {"description": description, "required": required, "schema": {"type": kind}}


def _content(reference: str) -> Schema:
    return {"application/json": {"schema": {"$ref": reference}}}


def _error_schema(fields: Schema) -> Schema:
    inner = {"type": "object", "required": list(fields), "properties": fields}
    return {"type": "object", "required": ["error"], "properties": {"error": inner}}
