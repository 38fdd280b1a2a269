"""Between the protobuf messages of cluster.pb and the values of core, both ways.

Owns the mapping only. Encoders take any core value whose numbers fit the wire; decoders take any message, and raise
only WorkerError for a role or leg that a newer peer may know and this one does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from cluster.pb import worker_pb2 as pb
from core.engine import HttpCall
from core.errors import BatonError, WorkerError, error_classes
from core.types import (
    Fingerprint,
    Handover,
    Leg,
    LegFacts,
    LegOrder,
    Membership,
    Role,
    WorkerHello,
    WorkerRecord,
    WorkerState,
)

_LEG_TO_PB = {Leg.WHOLE: pb.WHOLE, Leg.PREFILL: pb.PREFILL, Leg.DECODE: pb.DECODE}
_LEG_FROM_PB = {number: leg for leg, number in _LEG_TO_PB.items()}


@dataclass(frozen=True, slots=True)
class Submission:
    """One leg of a request as it travels; `call_id` is unique within its session."""

    call_id: int
    leg: Leg
    call: HttpCall
    handover: Handover | None
    slack_s: float = 0.0  # until the prompt must be begun to keep its SLO
    prompt_tokens: int = 0  # the router's estimate

    @property
    def order(self) -> LegOrder:
        """What the worker orders the leg by."""
        return LegOrder(self.slack_s, self.prompt_tokens)


def headers_to_pb(headers: Iterable[tuple[str, str]]) -> list[pb.Header]:
    """Encode headers in order."""
    return [pb.Header(name=name, value=value) for name, value in headers]


def headers_from_pb(headers: Iterable[pb.Header]) -> tuple[tuple[str, str], ...]:
    """Decode headers in order."""
    return tuple((header.name, header.value) for header in headers)


def submit_command(submission: Submission) -> pb.Command:
    """Encode a submission as the command that carries it."""
    call, handover = submission.call, submission.handover
    ticket = None
    if handover is not None:
        ticket = pb.Handover(transfer_id=handover.transfer_id, kv_address=handover.kv_address, lease_s=handover.lease_s)
    return pb.Command(
        submit=pb.Submit(
            call_id=submission.call_id,
            request_id=call.request_id,
            leg=_LEG_TO_PB[submission.leg],
            method=call.method,
            path=call.path,
            headers=headers_to_pb(call.headers),
            body=call.body,
            handover=ticket,
            slack_s=submission.slack_s,
            prompt_tokens=submission.prompt_tokens,
        )
    )


def submission_from_pb(submit: pb.Submit) -> Submission:
    """Decode a submission.

    Raises WorkerError for a leg unknown to this version.
    """
    leg = _LEG_FROM_PB.get(submit.leg)
    if leg is None:
        raise WorkerError(f"leg {int(submit.leg)} is unknown to this worker; router and workers must be one version")
    handover = None
    if submit.HasField("handover"):
        ticket = submit.handover
        handover = Handover(ticket.transfer_id, ticket.kv_address, ticket.lease_s)
    call = HttpCall(submit.request_id, submit.method, submit.path, headers_from_pb(submit.headers), submit.body)
    return Submission(submit.call_id, leg, call, handover, submit.slack_s, submit.prompt_tokens)


def fingerprint_to_pb(value: Fingerprint) -> pb.Fingerprint:
    """Encode a fingerprint."""
    return pb.Fingerprint(
        engine=value.engine,
        model=value.model,
        tokenizer=value.tokenizer,
        dtype=value.dtype,
        cache_dtype=value.cache_dtype,
        block_size=value.block_size,
        layout=value.layout,
        tensor_parallel=value.tensor_parallel,
        pipeline_parallel=value.pipeline_parallel,
        adapters=value.adapters,
    )


def fingerprint_from_pb(message: pb.Fingerprint) -> Fingerprint:
    """Decode a fingerprint."""
    return Fingerprint(
        engine=message.engine,
        model=message.model,
        tokenizer=message.tokenizer,
        dtype=message.dtype,
        cache_dtype=message.cache_dtype,
        block_size=message.block_size,
        layout=message.layout,
        tensor_parallel=message.tensor_parallel,
        pipeline_parallel=message.pipeline_parallel,
        adapters=message.adapters,
    )


def hello_to_pb(value: WorkerHello) -> pb.Hello:
    """Encode a hello."""
    return pb.Hello(
        worker_id=value.worker_id,
        role=value.role.value,
        epoch=value.epoch,
        model=value.model,
        max_model_len=value.max_model_len,
        kv_address=value.kv_address,
        num_kv_blocks=value.num_kv_blocks,
        fingerprint=fingerprint_to_pb(value.fingerprint),
    )


def hello_from_pb(message: pb.Hello) -> WorkerHello:
    """Decode a hello.

    Raises WorkerError for a role unknown to this version.
    """
    return WorkerHello(
        worker_id=message.worker_id,
        role=_role(message.role),
        epoch=message.epoch,
        model=message.model,
        max_model_len=message.max_model_len,
        kv_address=message.kv_address,
        num_kv_blocks=message.num_kv_blocks,
        fingerprint=fingerprint_from_pb(message.fingerprint),
    )


def state_to_pb(value: WorkerState) -> pb.WorkerState:
    """Encode a worker's state."""
    return pb.WorkerState(
        num_running=value.num_running,
        num_waiting=value.num_waiting,
        kv_blocks_used=value.kv_blocks_used,
        kv_blocks_total=value.kv_blocks_total,
        step_s=value.step_s,
        draining=value.draining,
        step_prompt_tokens=value.step_prompt_tokens,
        step_seqs=value.step_seqs,
    )


def state_from_pb(message: pb.WorkerState) -> WorkerState:
    """Decode a worker's state."""
    return WorkerState(
        message.num_running,
        message.num_waiting,
        message.kv_blocks_used,
        message.kv_blocks_total,
        message.step_s,
        message.draining,
        message.step_prompt_tokens,
        message.step_seqs,
    )


def facts_to_pb(value: LegFacts) -> pb.LegFacts:
    """Encode what a worker measured of a leg."""
    return pb.LegFacts(
        prompt_tokens=value.prompt_tokens,
        cached_tokens=value.cached_tokens,
        received_tokens=value.received_tokens,
        queued_s=value.queued_s,
        prefill_s=value.prefill_s,
    )


def facts_from_pb(message: pb.LegFacts) -> LegFacts:
    """Decode what a worker measured of a leg."""
    return LegFacts(
        message.prompt_tokens,
        message.cached_tokens,
        message.received_tokens,
        message.queued_s,
        message.prefill_s,
    )


def membership_to_pb(value: Membership) -> pb.Membership:
    """Encode a membership, workers in order."""
    workers = [
        pb.WorkerRecord(
            worker_id=worker.worker_id,
            role=worker.role.value,
            epoch=worker.epoch,
            address=worker.address,
            node=worker.node,
        )
        for worker in value.workers
    ]
    return pb.Membership(version=value.version, workers=workers)


def membership_from_pb(message: pb.Membership) -> Membership:
    """Decode a membership, workers in order.

    Raises WorkerError for a role unknown to this version.
    """
    workers = tuple(
        WorkerRecord(worker.worker_id, _role(worker.role), worker.epoch, worker.address, worker.node)
        for worker in message.workers
    )
    return Membership(message.version, workers)


def error_from_name(name: str, message: str) -> BatonError:
    """Make the core error called `name`; one unknown here becomes a plain WorkerError that says so."""
    kind = _error_kinds().get(name)
    return WorkerError(f"{name}: {message}") if kind is None else kind(message)


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError as exc:
        raise WorkerError(
            f"role {name!r} is unknown here; controller, routers and workers must be one version"
        ) from exc


@cache
def _error_kinds() -> dict[str, type[BatonError]]:
    return {kind.name: kind for kind in error_classes()}
