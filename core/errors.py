"""Every error that Baton raises on purpose, in one tree.

    BatonError
    ├── ConfigError              the YAML, a flag or an environment variable is wrong
    ├── NotRunning               what a command is about does not run
    ├── RequestRejected          the client's request is refused before any work
    │   ├── InvalidRequest           malformed body, wrong type, unknown field value
    │   ├── PayloadTooLarge          body or header beyond the limit
    │   ├── PromptTooLong            prompt and output do not fit the model's context
    │   ├── ModelNotFound            no such model or adapter
    │   ├── Unauthorized             key missing or unknown
    │   ├── Forbidden                the key is known, but not for this class
    │   ├── RateLimited              the tenant has used up a limit of its own
    │   ├── Overloaded               a queue or a limit is full
    │   └── SLOInfeasible            no route is predicted to keep the class's SLO
    ├── WorkerError              a worker could not do what was asked
    │   ├── WorkerLost               the process, its node or the stream to it is gone
    │   ├── WorkerDraining           the worker takes no new work
    │   ├── NoWorker                 no worker can serve this request now
    │   ├── DeadlineExceeded         the request outlived its own time limit
    │   ├── EngineFailed             the engine raised or died
    │   ├── ResumeFailed             a stream cannot go on elsewhere exactly as it began
    │   └── StartFailed              a process did not become ready
    └── KVTransferError          a hand-over of KV blocks failed
        ├── KVExpired                the lease ran out
        ├── PeerMismatch             fingerprint, prompt or layout differ
        ├── TransferTimeout          the peer did not answer in time
        ├── TransferAborted          cancelled by one side
        ├── CorruptFrame             checksum or frame layout wrong
        ├── DigestMismatch           what landed is not what the prefill side had
        └── StagingFull              no staging memory left

`name` is stable: clients, metrics and logs use it. `retriable` says whether the same request may be tried on
another worker before its first token. Edges map errors to HTTP or gRPC status in one table each.
"""

from __future__ import annotations

import re
from typing import Final

_NUMBER: Final = re.compile(r"\[Errno -?\d+\] ")


class BatonError(Exception):
    """Base of every deliberate error; `name` is the stable identifier that leaves the process."""

    name = "baton_error"
    retriable = False


class ConfigError(BatonError):
    """Configuration is wrong; the message names field and remedy."""

    name = "config_error"


class NotRunning(BatonError):
    """Nothing runs here that could be asked; the message says how to name something else."""

    name = "not_running"


class RequestRejected(BatonError):
    """A request is refused before any work.

    `param` names the offending field, if there is one. A refusal that passes by itself says when to come back:
    `earliest_s` from now an equal request is expected to be admitted, with that `confidence` from 0 to 1, and
    `retry_after_s` is when to ask again, which may be later, so that not all come back at once.
    """

    name = "request_rejected"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        earliest_s: float | None = None,
        confidence: float | None = None,
        slo_class: str | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after_s = retry_after_s
        self.earliest_s = earliest_s
        self.confidence = confidence
        self.slo_class = slo_class


class InvalidRequest(RequestRejected):
    """The body or a header is malformed."""

    name = "invalid_request_error"


class PayloadTooLarge(RequestRejected):
    """The body is larger than the router accepts."""

    name = "payload_too_large"


class PromptTooLong(RequestRejected):
    """The prompt does not fit the model's context."""

    name = "prompt_too_long"


class ModelNotFound(RequestRejected):
    """The model or adapter is not served here."""

    name = "model_not_found"


class Unauthorized(RequestRejected):
    """The key is missing or unknown."""

    name = "unauthorized"


class Forbidden(RequestRejected):
    """The key is known, but not for what was asked with it."""

    name = "forbidden"


class RateLimited(RequestRejected):
    """The tenant has used up one of its own limits."""

    name = "rate_limited"


class Overloaded(RequestRejected):
    """A bounded queue or limit is full."""

    name = "overloaded"


class SLOInfeasible(RequestRejected):
    """No route is predicted to keep the SLO."""

    name = "slo_infeasible"


class WorkerError(BatonError):
    """A worker could not do what was asked of it."""

    name = "worker_error"


class WorkerLost(WorkerError):
    """The worker's process, node or stream is gone."""

    name = "worker_lost"
    retriable = True


class WorkerDraining(WorkerError):
    """The worker takes no new work."""

    name = "worker_draining"
    retriable = True


class NoWorker(WorkerError):
    """No worker can serve the request now."""

    name = "no_worker"


class DeadlineExceeded(WorkerError):
    """The request outlived its own time limit."""

    name = "deadline_exceeded"


class EngineFailed(WorkerError):
    """The engine raised or died while serving."""

    name = "engine_failed"
    retriable = True


class ResumeFailed(WorkerError):
    """A stream whose worker was lost cannot go on elsewhere exactly as it began."""

    name = "resume_failed"


class StartFailed(WorkerError):
    """A process did not become ready in its time."""

    name = "start_failed"


class KVTransferError(BatonError):
    """A hand-over of KV blocks failed; the decode side recomputes."""

    name = "kv_transfer_error"


class KVExpired(KVTransferError):
    """The lease ran out before the bytes landed."""

    name = "kv_expired"


class PeerMismatch(KVTransferError):
    """Fingerprint, prompt or layout of the two sides differ."""

    name = "kv_peer_mismatch"


class TransferTimeout(KVTransferError):
    """The peer did not answer in time."""

    name = "kv_transfer_timeout"


class TransferAborted(KVTransferError):
    """One side cancelled the hand-over."""

    name = "kv_transfer_aborted"


class CorruptFrame(KVTransferError):
    """A frame's checksum or layout is wrong."""

    name = "kv_corrupt_frame"


class DigestMismatch(KVTransferError):
    """The blocks that landed are not those of the prefill side's cache, although every frame was right."""

    name = "kv_digest_mismatch"


class StagingFull(KVTransferError):
    """No staging memory is left for the hand-over."""

    name = "kv_staging_full"


def reason_of(exc: Exception) -> str:
    """Say in words why a library failed, without the number that an OSError's text begins with."""
    return getattr(exc, "strerror", None) or _NUMBER.sub("", str(exc)) or type(exc).__name__


def error_classes() -> tuple[type[BatonError], ...]:
    """List every class of this tree, root first. Subclasses made elsewhere go by the name of their parent here."""
    found = [value for value in globals().values() if isinstance(value, type) and issubclass(value, BatonError)]
    return tuple(found)
