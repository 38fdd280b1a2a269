"""The one map from Baton's errors to HTTP, and the one shape in which errors leave.

Owns status, Retry-After and the JSON of every error answer, whole or inside a stream. Must not decide when to fail.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

import orjson

from core import errors
from core.types import Rejection


@dataclass(frozen=True, slots=True)
class Status:
    """How one class of errors is told to a client."""

    code: int
    retry_after_s: float | None = None  # when the error itself names none


# 429 means "try later" and 503 "not serving", so that load balancers and retrying clients each read one of them.
STATUS_BY_ERROR: Final[Mapping[type[errors.BatonError], Status]] = MappingProxyType(
    {
        errors.ConfigError: Status(500),
        errors.NotRunning: Status(500),
        errors.InvalidRequest: Status(400),
        errors.PayloadTooLarge: Status(413),
        errors.PromptTooLong: Status(400),
        errors.ModelNotFound: Status(404),
        errors.Unauthorized: Status(401),
        errors.Forbidden: Status(403),
        errors.RateLimited: Status(429, 1.0),
        errors.Overloaded: Status(429, 1.0),
        errors.SLOInfeasible: Status(429, 1.0),
        errors.WorkerLost: Status(502, 1.0),
        errors.WorkerDraining: Status(503, 1.0),
        errors.NoWorker: Status(503, 1.0),
        errors.DeadlineExceeded: Status(504),
        errors.EngineFailed: Status(500),
        errors.ResumeFailed: Status(500),
        errors.StartFailed: Status(503, 5.0),
        errors.KVExpired: Status(500),
        errors.PeerMismatch: Status(500),
        errors.TransferTimeout: Status(500),
        errors.TransferAborted: Status(500),
        errors.CorruptFrame: Status(500),
        errors.StagingFull: Status(503, 1.0),
    }
)

Headers = list[tuple[bytes, bytes]]


def status_of(error: errors.BatonError) -> Status:
    """Look the error's class up, or the nearest class above it; 500 for the inner nodes of the tree."""
    for cls in type(error).__mro__:
        status = STATUS_BY_ERROR.get(cls)
        if status is not None:
            return status
    return Status(500)


def error_json(message: str, *, kind: str, code: int, param: str | None = None) -> bytes:
    """Write the error object that OpenAI's and vLLM's clients read."""
    return orjson.dumps({"error": _error_object(message, kind, code, param)})


def answer(
    error: errors.BatonError, retry_after_s: float | None = None, *, slo_class: str | None = None
) -> tuple[int, Headers, bytes]:
    """Turn an error into status, headers and body; the other arguments are used where the error names none itself.

    The header `x-baton-reason` holds the error's name, so that a refusal can be counted without reading its body.
    """
    status = status_of(error)
    rejected = error if isinstance(error, errors.RequestRejected) else None
    fields = _error_object(str(error), error.name, status.code, rejected.param if rejected else None)
    if rejected is not None:
        retry_after_s = _first(rejected.retry_after_s, retry_after_s, rejected.earliest_s)
    if rejected is not None and status.code == HTTPStatus.TOO_MANY_REQUESTS:
        fields |= {
            "slo_class": slo_class if rejected.slo_class is None else rejected.slo_class,
            "earliest_feasible_ms": None if rejected.earliest_s is None else math.ceil(rejected.earliest_s * 1000),
            "confidence": rejected.confidence,
        }
    headers: Headers = [(b"content-type", b"application/json"), (b"x-baton-reason", error.name.encode())]
    retry_after_s = _first(retry_after_s, status.retry_after_s)
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after_s))))
    if status.code == HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    return status.code, headers, orjson.dumps({"error": fields})


def _error_object(message: str, kind: str, code: int, param: str | None) -> dict[str, object]:
    return {"message": message, "type": kind, "param": param, "code": code}


def _first(*times_s: float | None) -> float | None:
    return next((t for t in times_s if t is not None), None)


def in_one_shape(status: int, body: bytes) -> bytes | None:
    """Rewrite the body of a worker's error answer that has another shape; None when it is as it should be.

    vLLM's own errors have the shape, OpenAI's or Anthropic's; those of the framework below it do not.
    """
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = None
    if isinstance(found, dict) and isinstance(found.get("error"), dict):
        return None
    detail = found.get("detail") if isinstance(found, dict) else None
    text = detail if isinstance(detail, str) else body.decode("utf-8", "replace").strip()
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else errors.EngineFailed.name
    return error_json(text or HTTPStatus(status).phrase, kind=kind, code=status)


def stream_event(error: errors.BatonError) -> bytes:
    """Write the error as the last event of a stream that has begun."""
    return b"data: " + answer(error)[2] + b"\n\n"


def refusal(rejection: Rejection, *, slo_class: str) -> errors.BatonError:
    """Make the error of a policy's rejection of a request of `slo_class`."""
    cls = next((c for c in errors.error_classes() if c.name == rejection.error), errors.NoWorker)
    if not issubclass(cls, errors.RequestRejected):
        return cls(rejection.reason)
    return cls(
        rejection.reason,
        retry_after_s=rejection.retry_after_s,
        earliest_s=rejection.earliest_s,
        confidence=rejection.confidence,
        slo_class=slo_class,
    )
