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


@dataclass(frozen=True, slots=True)
class Status:
    """How one class of errors is told to a client."""

    code: int
    retry_after_s: float | None = None  # when the error itself names none


# 429 means "try later" and 503 "not serving", so that load balancers and retrying clients each read one of them.
STATUS_BY_ERROR: Final[Mapping[type[errors.BatonError], Status]] = MappingProxyType(
    {
        errors.ConfigError: Status(500),
        errors.InvalidRequest: Status(400),
        errors.PayloadTooLarge: Status(413),
        errors.PromptTooLong: Status(400),
        errors.ModelNotFound: Status(404),
        errors.Unauthorized: Status(401),
        errors.Overloaded: Status(429, 1.0),
        errors.SLOInfeasible: Status(429, 1.0),
        errors.WorkerLost: Status(502, 1.0),
        errors.WorkerDraining: Status(503, 1.0),
        errors.NoWorker: Status(503, 1.0),
        errors.DeadlineExceeded: Status(504),
        errors.EngineFailed: Status(500),
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
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def answer(error: errors.BatonError, retry_after_s: float | None = None) -> tuple[int, Headers, bytes]:
    """Turn an error into status, headers and body; `retry_after_s` is used when the error names none itself."""
    status = status_of(error)
    param = None
    if isinstance(error, errors.RequestRejected):
        param = error.param
        retry_after_s = retry_after_s if error.retry_after_s is None else error.retry_after_s
    if retry_after_s is None:
        retry_after_s = status.retry_after_s
    headers: Headers = [(b"content-type", b"application/json")]
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after_s))))
    if status.code == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return status.code, headers, error_json(str(error), kind=error.name, code=status.code, param=param)


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


def rejection_error(name: str, reason: str, retry_after_s: float | None) -> errors.BatonError:
    """Make the error that a policy named."""
    cls = next((c for c in errors.error_classes() if c.name == name), errors.NoWorker)
    if issubclass(cls, errors.RequestRejected):
        return cls(reason, retry_after_s=retry_after_s)
    return cls(reason)
