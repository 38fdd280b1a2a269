"""Mock workers for Baton's router: they speak its session protocol, as real workers do, and compute nothing.

Owns what a leg costs in the mock: nothing but a step of the batch. Must not know the wire: cluster.session_server
carries it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bench.router.answers import DONE, JSON_TYPE, MODEL, STREAM_TYPE, completion
from bench.router.stepping import Batch, Timing
from core.engine import HttpCall, ReplySink
from core.types import Fingerprint, Handover, Leg, LegFacts, LegOrder, Role, WorkerHello, WorkerState

NUM_KV_BLOCKS = 200_000
BLOCK_SIZE = 16
MAX_NUM_SEQS = 256
_BYTES_PER_TOKEN = 4
_JSON = (("content-type", JSON_TYPE),)
_STREAM = (("content-type", STREAM_TYPE),)
_STREAM_WANTED = b'"stream":true'
_MAX_TOKENS = b'"max_tokens":'
_TOKEN = (31_000,)  # what each event is said to be made of


class HandoverTable:
    """Which prompts have been handed over: a decode leg waits for its prefill leg, as it would for the KV cache."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[None]] = {}  # all and only the decode legs that wait, by transfer
        self._landed: set[str] = set()  # all and only the transfers that came before their decode leg

    def __len__(self) -> int:
        """Count the legs that wait for their other half."""
        return len(self._waiting) + len(self._landed)

    def land(self, transfer_id: str) -> None:
        """Let the decode leg go on."""
        waiter = self._waiting.get(transfer_id)
        if waiter is None:
            self._landed.add(transfer_id)
        elif not waiter.done():
            waiter.set_result(None)

    def forget(self, transfer_id: str) -> None:
        """Let a decode leg go on without, and keep nothing for one that will not come."""
        self._landed.discard(transfer_id)
        if transfer_id in self._waiting:
            self.land(transfer_id)

    async def landed(self, transfer_id: str) -> None:
        """Wait for a transfer."""
        if transfer_id in self._landed:
            self._landed.discard(transfer_id)
            return
        waiter = self._waiting[transfer_id] = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            del self._waiting[transfer_id]


class MockWorker:
    """A core.worker.Worker whose engine computes nothing; all workers of a cluster share one table of hand-overs."""

    def __init__(self, worker_id: str, role: Role, *, timing: Timing, handovers: HandoverTable) -> None:
        fingerprint = Fingerprint("mock", MODEL, MODEL, "bfloat16", "auto", BLOCK_SIZE, "mock", 1, 1, "")
        self._hello = WorkerHello(worker_id, role, 1, MODEL, 1 << 15, "127.0.0.1:1", NUM_KV_BLOCKS, fingerprint)
        self._timing = timing
        self._handovers = handovers
        self._batch = Batch(timing, self._stepped)
        self._callbacks: list[Callable[[], None]] = []
        self._step_seqs = 0
        self._is_step_due = False

    @property
    def hello(self) -> WorkerHello:
        """What this worker says of itself."""
        return self._hello

    async def run(self, leg: Leg, call: HttpCall, handover: Handover | None, order: LegOrder, sink: ReplySink) -> None:
        """Answer a leg; see core.worker.Worker."""
        prompt_tokens = len(call.body) // _BYTES_PER_TOKEN
        if self._timing.ttft_us and leg is not Leg.DECODE:
            await asyncio.sleep(self._timing.ttft_us / 1e6)
        if leg is Leg.PREFILL:
            sink.start(200, _JSON)
            sink.body(completion(1))
            assert handover is not None, "a prefill leg has a hand-over"
            self._handovers.land(handover.transfer_id)
            sink.facts(LegFacts(prompt_tokens, 0, 0, 0.0, self._timing.ttft_us / 1e6))
            self._note_step()
            return
        received = 0
        if handover is not None:
            await self._handovers.landed(handover.transfer_id)
            received = prompt_tokens
        tokens = _max_tokens(call.body)
        if _STREAM_WANTED in call.body:
            sink.start(200, _STREAM)
            await self._stream(tokens, sink)
        else:
            sink.start(200, _JSON)
            sink.body(completion(tokens))
            self._note_step()
        sink.facts(LegFacts(prompt_tokens, 0, received))

    async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        """Let the leg that waits go on without."""
        self._handovers.forget(transfer_id)

    def state(self) -> WorkerState:
        """Report the batch as it is."""
        running = len(self._batch)
        return WorkerState(
            num_running=running,
            kv_blocks_used=running * 8,
            kv_blocks_total=NUM_KV_BLOCKS,
            step_s=self._timing.itl_us / 1e6,
            step_seqs=self._step_seqs,
        )

    def on_step(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each step."""
        self._callbacks.append(callback)

    def drain(self) -> None:
        """Do nothing: mock workers end with their process."""

    def close(self) -> None:
        """Stop the steps."""
        self._batch.close()

    async def _stream(self, tokens: int, sink: ReplySink) -> None:
        sequence = _SinkSequence(tokens, sink)
        self._batch.add(sequence)
        try:
            await sequence.ended
        finally:
            self._batch.remove(sequence)

    def _note_step(self) -> None:
        """Tell of a step once for all legs that are answered in this pass of the loop."""
        if not self._is_step_due:
            self._is_step_due = True
            asyncio.get_running_loop().call_soon(self._stepped)

    def _stepped(self) -> None:
        self._is_step_due = False
        self._step_seqs = len(self._batch)
        for callback in self._callbacks:
            callback()


class _SinkSequence:
    """A stream into a reply of the session."""

    __slots__ = ("_sink", "ended", "left")

    def __init__(self, tokens: int, sink: ReplySink) -> None:
        self._sink = sink
        self.left = tokens
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def token(self, event: bytes) -> None:
        self._sink.tokens(_TOKEN)
        self._sink.body(event)

    def end(self, event: bytes) -> None:
        self._sink.body(event + DONE)
        if not self.ended.done():
            self.ended.set_result(None)


def _max_tokens(body: bytes) -> int:
    """Read the field as the load client writes it."""
    at = body.find(_MAX_TOKENS)
    if at < 0:
        return 16
    digits = body[at + len(_MAX_TOKENS) : at + len(_MAX_TOKENS) + 6]
    return max(1, int(digits.partition(b",")[0].rstrip(b"}")))
