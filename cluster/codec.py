"""Between the protobuf messages of cluster.pb and the values of core, both ways.

Owns the mapping only. Encoders take any core value whose numbers fit the wire; decoders take any message, and raise
only WorkerError for a role or leg that a newer peer may know and this one does not.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from struct import Struct
from typing import Final

from google.protobuf.message import DecodeError

from cluster.pb import worker_pb2 as pb
from core.engine import HttpCall, Resume
from core.errors import BatonError, WorkerError, error_classes
from core.types import (
    ControlDecision,
    Fingerprint,
    Handover,
    Leg,
    LegFacts,
    LegOrder,
    Membership,
    Quarantined,
    Role,
    WorkerHello,
    WorkerRecord,
    WorkerState,
)

TOKEN_BYTES: Final = 4
_LEG_FROM_PB = {pb.WHOLE: Leg.WHOLE, pb.PREFILL: Leg.PREFILL, pb.DECODE: Leg.DECODE}


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


def command_from_bytes(message: bytes) -> pb.Command:
    """Parse a command. Raises WorkerError."""
    try:
        return pb.Command.FromString(message)
    except DecodeError as exc:
        raise WorkerError("a message is no command of this version") from exc


def frame_from_bytes(message: bytes) -> pb.Frame:
    """Parse a frame. Raises WorkerError."""
    try:
        return pb.Frame.FromString(message)
    except DecodeError as exc:
        raise WorkerError("a message is no frame of this version") from exc


def headers_to_pb(headers: Iterable[tuple[str, str]]) -> list[pb.Header]:
    """Encode headers in order."""
    return [pb.Header(name=name, value=value) for name, value in headers]


def headers_from_pb(headers: Iterable[pb.Header]) -> tuple[tuple[str, str], ...]:
    """Decode headers in order."""
    return tuple([(header.name, header.value) for header in headers])


_TRACEPARENT: Final = "traceparent"


# Tags of the fields that change with each submission; see protobuf.dev/programming-guides/encoding.
_COMMAND_SUBMIT: Final = b"\x0a"
_CALL_ID, _REQUEST_ID, _LEG, _BODY, _NONCE = b"\x08", b"\x12", b"\x18", b"\x3a", b"\xe2\x03"
_NUMBERS: Final = Struct("<BdB")  # slack_s and its tag, then the tag of prompt_tokens
_SLACK_S, _PROMPT_TOKENS = 0x49, 0x50
_LEG_BYTES: Final = {leg: _LEG + bytes((number,)) for number, leg in _LEG_FROM_PB.items()}


class SubmitEncoder:
    """Encodes the legs of one request.

    What they share is written once, and what calls have in common once for all of them: setting the fields of a message
    one by one takes four times as long.
    """

    __slots__ = ("_common", "_traceparents", "body_bytes", "prompt_tokens", "tpot_s")

    def __init__(
        self,
        call: HttpCall,
        handover: Handover | None,
        *,
        prompt_tokens: int = 0,
        slack_s: float = 0.0,
        tpot_s: float | None = None,
        traceparents: Mapping[Leg, str] | None = None,
    ) -> None:
        """Take what the legs share, and the `traceparents` in which they differ; None: the header is as in `call`.

        `tpot_s` is the request's target, which stays on this side: what joins its batch must leave room for it.
        """
        self.body_bytes = len(call.body)
        self.prompt_tokens = prompt_tokens
        self.tpot_s = tpot_s
        self._traceparents = traceparents
        headers = call.headers
        if traceparents is not None:
            headers = tuple([(name, value) for name, value in headers if name != _TRACEPARENT])
        request_id, nonce = call.request_id.encode(), call.nonce.encode()
        self._common = (
            _same_of_calls(call.method, call.path, headers)
            + _REQUEST_ID + _varint(len(request_id)) + request_id
            + _NUMBERS.pack(_SLACK_S, slack_s, _PROMPT_TOKENS) + _varint(prompt_tokens)
            + _NONCE + _varint(len(nonce)) + nonce
            + _BODY + _varint(self.body_bytes) + call.body
        )  # fmt: skip
        if handover is not None or call.resume is not None:
            self._common += _seldom(call, handover)

    def encode(self, call_id: int, leg: Leg) -> bytes:
        """Write the command that submits one leg."""
        own = _CALL_ID + _varint(call_id) + _LEG_BYTES[leg]
        if self._traceparents is not None:
            own += pb.Submit(headers=[pb.Header(name=_TRACEPARENT, value=self._traceparents[leg])]).SerializeToString()
        return b"".join((_COMMAND_SUBMIT, _varint(len(self._common) + len(own)), self._common, own))


@lru_cache(maxsize=256)
def _same_of_calls(method: str, path: str, headers: tuple[tuple[str, str], ...]) -> bytes:
    """Write what many calls have in common."""
    return pb.Submit(method=method, path=path, headers=headers_to_pb(headers)).SerializeToString()


def _seldom(call: HttpCall, handover: Handover | None) -> bytes:
    """Write what only some submissions have."""
    submit = pb.Submit()
    if call.resume is not None:
        submit.resume.token_ids = tokens_to_pb(call.resume.token_ids)
        submit.resume.group_sizes.extend(call.resume.group_sizes)
        submit.resume.created = call.resume.created
    if handover is not None:
        ticket = submit.handover
        ticket.transfer_id = handover.transfer_id
        ticket.kv_address = handover.kv_address
        ticket.lease_s = handover.lease_s
        if handover.due_in_s is not None:
            ticket.due_in_s = handover.due_in_s
    return submit.SerializeToString()


def _varint(number: int) -> bytes:
    """Write a number in groups of seven bits, the least first."""
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    return bytes((number & 0x7F | 0x80,)) + _varint(number >> 7)


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
        due_in_s = ticket.due_in_s if ticket.HasField("due_in_s") else None
        handover = Handover(ticket.transfer_id, ticket.kv_address, ticket.lease_s, due_in_s)
    call = HttpCall(
        submit.request_id,
        submit.method,
        submit.path,
        headers_from_pb(submit.headers),
        submit.body,
        submit.nonce,
        _resume_from_pb(submit.resume) if submit.HasField("resume") else None,
    )
    return Submission(submit.call_id, leg, call, handover, submit.slack_s, submit.prompt_tokens)


def _resume_from_pb(message: pb.Resume) -> Resume:
    return Resume(tuple(tokens_from_pb(message.token_ids)), tuple(message.group_sizes), message.created)


def tokens_to_pb(token_ids: Sequence[int]) -> bytes:
    """Encode token ids, four bytes each, little-endian."""
    if len(token_ids) == 1:  # the common case takes a third of the time
        return token_ids[0].to_bytes(TOKEN_BYTES, "little")
    return _swapped(array("I", token_ids)).tobytes()


def tokens_from_pb(data: bytes) -> array[int]:
    """Decode token ids. Raises WorkerError for what is none."""
    if len(data) % TOKEN_BYTES:
        raise WorkerError(f"{len(data)} bytes are no token ids")
    return _swapped(array("I", data))


def _swapped(token_ids: array[int]) -> array[int]:
    if sys.byteorder == "big":
        token_ids.byteswap()
    return token_ids


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
        quarantined=[
            pb.Quarantined(worker_id=q.worker_id, epoch=q.epoch, times=q.times, left_s=q.left_s, reason=q.reason)
            for q in value.quarantined
        ],
        stalled=value.stalled,
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
        tuple(Quarantined(q.worker_id, q.epoch, q.times, q.left_s, q.reason) for q in message.quarantined),
        message.stalled,
    )


def facts_to_pb(value: LegFacts) -> pb.LegFacts:
    """Encode what a worker measured of a leg."""
    return pb.LegFacts(
        prompt_tokens=value.prompt_tokens,
        cached_tokens=value.cached_tokens,
        received_tokens=value.received_tokens,
        queued_s=value.queued_s,
        prefill_s=value.prefill_s,
        blocks_s=value.blocks_s,
        landed_s=value.landed_s,
    )


def facts_from_pb(message: pb.LegFacts) -> LegFacts:
    """Decode what a worker measured of a leg."""
    return LegFacts(
        message.prompt_tokens,
        message.cached_tokens,
        message.received_tokens,
        message.queued_s,
        message.prefill_s,
        message.blocks_s,
        message.landed_s,
    )


def membership_to_pb(value: Membership, decisions: Sequence[ControlDecision] = ()) -> pb.Membership:
    """Encode a membership, workers in order, and what was decided about the pools."""
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
    told = [pb.ControlDecision(at_s=d.at_s, text=d.text, reason=d.reason, outcome=d.outcome) for d in decisions]
    return pb.Membership(version=value.version, workers=workers, decisions=told)


def membership_from_pb(message: pb.Membership) -> Membership:
    """Decode a membership, workers in order.

    Raises WorkerError for a role unknown to this version.
    """
    workers = tuple(
        WorkerRecord(worker.worker_id, _role(worker.role), worker.epoch, worker.address, worker.node)
        for worker in message.workers
    )
    return Membership(message.version, workers)


def decisions_from_pb(message: pb.Membership) -> tuple[ControlDecision, ...]:
    """Decode what was decided about the pools, newest first."""
    return tuple(ControlDecision(d.at_s, d.text, d.reason, d.outcome) for d in message.decisions)


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
