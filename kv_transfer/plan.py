"""The scheduler half of a hand-over as pure state: which blocks of which request go where in this engine step.

Owns no tensor, thread, socket or clock. The connector feeds it what vLLM's scheduler decided and ships the resulting
`StepPlan` to the worker half; nothing else is shared between the two halves.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

NULL_BLOCK: Final = 0  # vLLM's null block, in place of what lies outside a sliding window


@dataclass(frozen=True, slots=True)
class SendParams:
    """What a prefill request says of its hand-over."""

    transfer_id: str
    peer: str  # host:port of the decode engine's receiver, one per tensor-parallel rank, comma-separated
    lease_s: float
    due_s: float | None = None  # of the machine's monotonic clock: when the request's first token is due


@dataclass(frozen=True, slots=True)
class ReceiveParams:
    """What a decode request says of its hand-over."""

    transfer_id: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class SendOpen:
    """A hand-over whose first chunk is computed in this step."""

    params: SendParams
    request_id: str
    prompt_digest: str
    num_blocks: int


@dataclass(frozen=True, slots=True)
class SendRange:
    """Blocks that are complete once this step's forward pass wrote them."""

    transfer_id: str
    first_block: int  # position in the request's block list
    block_ids: tuple[int, ...]  # physical
    last: bool
    is_final: bool = True  # nothing is written to these blocks any more, as long as the request has them


@dataclass(frozen=True, slots=True)
class SendHold:
    """A finished request whose blocks may still be read by the peer."""

    request_id: str
    transfer_id: str


@dataclass(frozen=True, slots=True)
class ReceiveOpen:
    """Blocks reserved on this side for a hand-over that is expected."""

    params: ReceiveParams
    request_id: str
    prompt_digest: str
    first_block: int  # blocks before it are in this engine's prefix cache already, or outside a sliding window
    num_blocks: int  # of the whole prompt
    block_ids: tuple[int, ...]  # physical, of blocks first_block..num_blocks


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What the worker half has to do in one engine step."""

    send_opens: tuple[SendOpen, ...] = ()
    send_ranges: tuple[SendRange, ...] = ()
    send_aborts: tuple[str, ...] = ()  # transfer ids
    send_holds: tuple[SendHold, ...] = ()  # of requests that have finished: their blocks are freed when we say so
    send_call_backs: tuple[str, ...] = ()  # transfer ids of requests whose blocks this step may overwrite
    receive_opens: tuple[ReceiveOpen, ...] = ()
    receive_cancels: tuple[str, ...] = ()  # transfer ids
    computes: bool = False  # whether the step runs the model at all


def prompt_digest(token_ids: Sequence[int], *extra_keys: str) -> str:
    """Digest what determines a prompt's KV: token ids, and adapter and media identifiers in `extra_keys`."""
    digest = hashlib.blake2b(array("q", token_ids).tobytes(), digest_size=16)
    for key in extra_keys:
        digest.update(b"\0" + key.encode())
    return digest.hexdigest()


@dataclass(slots=True)
class _Send:
    open: SendOpen
    num_prompt_tokens: int
    block_ids: list[int]
    goes_on: bool  # the request computes beyond its prompt
    next_block: int = 0
    announced: bool = False


@dataclass(slots=True)
class HandoverPlanner:
    """Follows the requests that hand KV over, from their first scheduling to their end."""

    block_size: int  # tokens
    holds_blocks: bool = False  # of finished requests, until the worker half has seen the last of them read
    _sends: dict[str, _Send] = field(default_factory=dict)  # all and only unfinished sends, by request id
    _receives: dict[str, str] = field(default_factory=dict)  # request id -> transfer id, until the request ends
    _receivers: dict[str, str] = field(default_factory=dict)  # transfer id -> request id, inverse of _receives
    _receive_opens: list[ReceiveOpen] = field(default_factory=list)
    _receive_cancels: list[str] = field(default_factory=list)
    _send_ranges: list[SendRange] = field(default_factory=list)
    _send_opens: list[SendOpen] = field(default_factory=list)
    _send_aborts: list[str] = field(default_factory=list)
    _sent: dict[str, str] = field(default_factory=dict)  # request id -> transfer id, of all announced, until it ends
    _send_holds: list[SendHold] = field(default_factory=list)
    _send_call_backs: list[str] = field(default_factory=list)

    def external_tokens(
        self, request_id: str, params: ReceiveParams, *, num_prompt_tokens: int, num_computed_tokens: int
    ) -> int:
        """Say how many prompt tokens beyond the local prefix hit will come from the peer; 0 to compute locally.

        A hand-over serves one request once: a preempted request, or a sibling with the same ticket, gets 0.
        The prefix hit must be block aligned. The last prompt token is recomputed here in any case, so a prompt
        of one token gains nothing.
        """
        if request_id in self._receives or params.transfer_id in self._receivers:
            return 0
        missing = num_prompt_tokens - num_computed_tokens
        return missing if missing > 1 and num_computed_tokens % self.block_size == 0 else 0

    def open_receive(
        self,
        request_id: str,
        params: ReceiveParams,
        *,
        digest: str,
        num_prompt_tokens: int,
        num_external_tokens: int,
        block_ids: Sequence[int],
    ) -> None:
        """Note the blocks that were reserved for a hand-over; `block_ids` are all blocks of the request.

        Those at the beginning that a sliding window has left behind have no memory here, and are not asked for.
        """
        num_blocks = -(-num_prompt_tokens // self.block_size)
        first = (num_prompt_tokens - num_external_tokens) // self.block_size
        while first < num_blocks - 1 and block_ids[first] == NULL_BLOCK:
            first += 1
        self._receives[request_id] = params.transfer_id
        self._receivers[params.transfer_id] = request_id
        self._receive_opens.append(
            ReceiveOpen(params, request_id, digest, first, num_blocks, tuple(block_ids[first:num_blocks]))
        )

    def refuse_receive(self, request_id: str, params: ReceiveParams) -> None:
        """Note that a request will not take the hand-over it was promised (all of its prompt is cached here)."""
        if request_id in self._receives or params.transfer_id in self._receivers:
            return
        self._receives[request_id] = params.transfer_id
        self._receivers[params.transfer_id] = request_id
        self._receive_cancels.append(params.transfer_id)

    def open_send(
        self,
        request_id: str,
        params: SendParams,
        *,
        digest: str,
        num_prompt_tokens: int,
        block_ids: Sequence[int],
        goes_on: bool = True,
    ) -> None:
        """Note a prefill request that was scheduled for the first time, or again after a preemption.

        One that `goes_on` writes to the last block of its prompt when that is handed over already, unless it is full.
        """
        known = self._sends.get(request_id)
        if known is not None:
            known.block_ids = list(block_ids)
            return
        num_blocks = -(-num_prompt_tokens // self.block_size)
        opened = SendOpen(params, request_id, digest, num_blocks)
        self._sends[request_id] = _Send(opened, num_prompt_tokens, list(block_ids), goes_on)

    def add_blocks(self, request_id: str, block_ids: Sequence[int]) -> None:
        """Append blocks the scheduler gave to a continuing request."""
        if send := self._sends.get(request_id):
            send.block_ids.extend(block_ids)

    def replace_blocks(self, request_id: str, block_ids: Sequence[int]) -> None:
        """Take the new block list of a request resumed after preemption; blocks already sent are not sent again."""
        if send := self._sends.get(request_id):
            send.block_ids = list(block_ids)

    def advance_send(self, request_id: str, num_computed_tokens: int) -> None:
        """Note that this step computes the request's prompt up to `num_computed_tokens`."""
        send = self._sends.get(request_id)
        if send is None:
            return
        if not send.announced:
            send.announced = True
            self._send_opens.append(send.open)
            self._sent[request_id] = send.open.params.transfer_id
        last = num_computed_tokens >= send.num_prompt_tokens
        end = send.open.num_blocks if last else num_computed_tokens // self.block_size
        if end > send.next_block or last:
            ids = tuple(send.block_ids[send.next_block : end])
            is_final = not (last and send.goes_on and send.num_prompt_tokens % self.block_size)
            self._send_ranges.append(SendRange(send.open.params.transfer_id, send.next_block, ids, last, is_final))
            send.next_block = end
        if last:
            del self._sends[request_id]

    def preempt(self, request_id: str) -> None:
        """Note that a request has lost its blocks, before anything is written to them."""
        if (transfer_id := self._sent.get(request_id)) is not None:
            self._send_call_backs.append(transfer_id)

    def finish(self, request_id: str) -> bool:
        """Note that a request ended, however it ended; open hand-overs of it are given up.

        Returns whether its blocks are held until the worker half says that they are not read any more.
        """
        send = self._sends.pop(request_id, None)
        if send is not None and send.announced:
            self._send_aborts.append(send.open.params.transfer_id)
        transfer_id = self._receives.pop(request_id, None)
        if transfer_id is not None:
            del self._receivers[transfer_id]
            self._receive_cancels.append(transfer_id)
        transfer_id = self._sent.pop(request_id, None)
        if transfer_id is None or not self.holds_blocks:
            return False
        self._send_holds.append(SendHold(request_id, transfer_id))
        return True

    def take_step(self, *, computes: bool = False) -> StepPlan:
        """Hand out what gathered since the last call; `computes` says whether the step runs the model."""
        plan = StepPlan(
            tuple(self._send_opens),
            tuple(self._send_ranges),
            tuple(self._send_aborts),
            tuple(self._send_holds),
            tuple(self._send_call_backs),
            tuple(self._receive_opens),
            tuple(self._receive_cancels),
            computes,
        )
        self._send_opens.clear()
        self._send_ranges.clear()
        self._send_aborts.clear()
        self._send_holds.clear()
        self._send_call_backs.clear()
        self._receive_opens.clear()
        self._receive_cancels.clear()
        return plan
