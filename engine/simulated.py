"""An engine without a model: it answers in made-up words and keeps time by a simple latency model.

Owns continuous batching under a token budget, a count of KV blocks, and hand-overs without KV: they arrive through
`Deliveries` when both engines share one, and otherwise after the time they would have taken. For tests of routers,
policies and scale; must not know legs or sockets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from core.engine import EngineDescription, HttpCall, ReplySink
from core.errors import EngineFailed
from core.types import Fingerprint, WorkerState
from core.worker_spec import EngineSpec, WorkerSpec
from engine import simulated_openai as openai
from engine.simulated_prefix_cache import PrefixCache
from engine.simulated_sequence import Sequence
from engine.simulated_timing import SimulatedTiming
from engine.step_state import StepReport

_DEFAULT_MAX_MODEL_LEN = 8192


class Deliveries:
    """Which hand-overs have arrived, for the simulated engines of one process."""

    def __init__(self) -> None:
        self._arrived: set[str] = set()  # all and only those delivered and not yet expected
        self._expected: dict[str, Callable[[], None]] = {}  # all and only those expected and not yet delivered

    def deliver(self, transfer_id: str) -> None:
        """Record an arrival, and tell who expects it."""
        callback = self._expected.pop(transfer_id, None)
        if callback is None:
            self._arrived.add(transfer_id)
        else:
            callback()

    def expect(self, transfer_id: str, callback: Callable[[], None]) -> None:
        """Call `callback` once the hand-over has arrived, at once if it has."""
        if transfer_id in self._arrived:
            self._arrived.discard(transfer_id)
            callback()
        else:
            self._expected[transfer_id] = callback

    def forget(self, transfer_id: str) -> None:
        """Expect a hand-over no longer."""
        self._expected.pop(transfer_id, None)


class SimulatedEngine:
    """Implements core.engine.Engine; one timer per step, whatever the number of requests."""

    def __init__(self, spec: WorkerSpec, deliveries: Deliveries | None) -> None:
        self._spec = spec.engine
        self._deliveries = deliveries
        self._timing = SimulatedTiming.parse(spec.engine.extra_args)
        self._description = EngineDescription(
            model=spec.engine.served_model_name,
            max_model_len=spec.engine.max_model_len or _DEFAULT_MAX_MODEL_LEN,
            num_kv_blocks=self._timing.num_kv_blocks,
            kv_address=f"simulated:{spec.worker_id}",
            fingerprint=_fingerprint(spec.engine),
        )
        self._waiting: deque[Sequence] = deque()  # all and only those that hold no blocks
        self._expecting: dict[str, Sequence] = {}  # all and only those that hold blocks and wait for a hand-over
        self._running: list[Sequence] = []  # all and only those that take part in steps, in order of admission
        self._blocks_used = 0
        self._cache = PrefixCache(block_size=spec.engine.block_size, max_blocks=self._timing.cached_blocks)
        self._latest = StepReport(0.0, 0, 0)
        self._callbacks: list[Callable[[], None]] = []
        self._work = asyncio.Event()
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stepper: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, spec: WorkerSpec, deliveries: Deliveries | None = None) -> Self:
        """Make an engine that steps.

        Raises ConfigError when `spec.engine.extra_args` holds a flag the simulation does not have.
        """
        engine = cls(spec, deliveries)
        engine._stepper = asyncio.create_task(engine._step_forever(), name="simulated-steps")
        return engine

    @property
    def description(self) -> EngineDescription:
        """What is fixed once the engine is up."""
        return self._description

    async def serve(self, call: HttpCall, sink: ReplySink) -> None:
        """Answer one call into `sink`; see core.engine.Engine."""
        if self._failed.done():
            raise EngineFailed(self._failed.result())
        path = call.path.partition("?")[0]
        if (call.method, path) == ("GET", "/v1/models"):
            sink.start(200, openai.JSON_HEADERS)
            sink.body(openai.models_body(self._description.model, self._description.max_model_len))
            return
        try:
            sequence = self._accept(call, path, sink)
        except openai.BadCall as exc:
            sink.start(exc.status, openai.JSON_HEADERS)
            sink.body(exc.body())
            return
        self._waiting.append(sequence)
        self._admit()
        try:
            await sequence.done
        finally:
            self._remove(sequence)
        sink.facts(sequence.facts())

    async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        """Recompute what waits for the hand-over, at once."""
        self._begin(transfer_id, recompute=True)

    def state(self) -> WorkerState:
        """Report the load at the end of the latest step."""
        return WorkerState(
            num_running=len(self._running),
            num_waiting=len(self._waiting) + len(self._expecting),
            kv_blocks_used=self._blocks_used,
            kv_blocks_total=self._timing.num_kv_blocks,
            step_s=self._latest.seconds,
            step_prompt_tokens=self._latest.prompt_tokens,
            step_seqs=self._latest.seqs,
        )

    def on_step(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each step."""
        self._callbacks.append(callback)

    async def failed(self) -> str:
        """Wait until `fail` was called and return its reason."""
        return await asyncio.shield(self._failed)

    def fail(self, reason: str) -> None:
        """Break the engine as a crash would: every call, running or new, raises EngineFailed."""
        if not self._failed.done():
            self._failed.set_result(reason)
        for sequence in (*self._waiting, *self._expecting.values(), *self._running):
            if not sequence.done.done():
                sequence.done.set_exception(EngineFailed(reason))

    async def close(self) -> None:
        """Stop stepping; calls that run raise EngineFailed; idempotent."""
        self.fail("the engine was closed")
        stepper, self._stepper = self._stepper, None
        if stepper is not None:
            stepper.cancel()
            await asyncio.wait([stepper])

    def _accept(self, call: HttpCall, path: str, sink: ReplySink) -> Sequence:
        if call.method != "POST" or path not in ("/v1/completions", "/v1/chat/completions"):
            raise openai.BadCall(404, "NotFoundError", "Not Found")
        generation = openai.parse_generation(
            call,
            chat=path == "/v1/chat/completions",
            model=self._description.model,
            max_model_len=self._description.max_model_len,
        )
        num_blocks = -(-(generation.num_prompt_tokens + generation.max_tokens) // self._spec.block_size)
        if num_blocks > self._timing.num_kv_blocks:
            raise openai.BadCall(400, "BadRequestError", f"The request needs {num_blocks} KV blocks.")
        return Sequence(generation, sink, num_blocks, asyncio.get_running_loop().time())

    def _admit(self) -> None:
        """Give blocks to those that wait, in order, while there are some."""
        while self._waiting:
            sequence = self._waiting[0]
            is_full = len(self._running) + len(self._expecting) >= self._spec.max_num_seqs
            if is_full or self._blocks_used + sequence.num_blocks > self._timing.num_kv_blocks:
                return
            self._waiting.popleft()
            self._blocks_used += sequence.num_blocks
            sequence.reuse(self._cache.match(sequence.generation.prompt))
            transfer_id = sequence.generation.receives_transfer
            if transfer_id and transfer_id not in self._expecting:
                self._expect(transfer_id, sequence)
            else:
                self._run(sequence)

    def _expect(self, transfer_id: str, sequence: Sequence) -> None:
        loop = asyncio.get_running_loop()
        self._expecting[transfer_id] = sequence
        if self._deliveries is None:
            delay_s = self._timing.handover_s(sequence.owed_tokens)
            sequence.timer = loop.call_later(delay_s, self._begin, transfer_id)
        else:
            sequence.timer = loop.call_later(sequence.generation.lease_s, self._begin, transfer_id, True)
            self._deliveries.expect(transfer_id, lambda: self._begin(transfer_id))

    def _begin(self, transfer_id: str, recompute: bool = False) -> None:
        """Let the sequence that waits for a hand-over take part in steps."""
        sequence = self._expecting.get(transfer_id)
        if sequence is None:
            return
        self._expect_no_longer(transfer_id, sequence)
        if not recompute:
            sequence.receive()
        self._run(sequence)

    def _expect_no_longer(self, transfer_id: str, sequence: Sequence) -> None:
        del self._expecting[transfer_id]
        sequence.stop_timer()
        if self._deliveries is not None:
            self._deliveries.forget(transfer_id)

    def _run(self, sequence: Sequence) -> None:
        self._running.append(sequence)
        self._work.set()

    def _remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks; nothing happens the second time."""
        transfer_id = sequence.generation.receives_transfer
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            return
        if sequence in self._running:
            self._running.remove(sequence)
        elif self._expecting.get(transfer_id) is sequence:
            self._expect_no_longer(transfer_id, sequence)
        else:
            return
        self._blocks_used -= sequence.num_blocks
        self._admit()

    async def _step_forever(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = 0.0
        while True:
            while not self._running:
                self._work.clear()
                await self._work.wait()
            batch, step_s = self._schedule()
            began_s = max(due_s, loop.time())
            due_s = began_s + step_s
            await asyncio.sleep(due_s - loop.time())
            self._latest = self._end_step(batch, began_s, due_s)
            for callback in self._callbacks:
                callback()

    def _end_step(self, batch: list[tuple[Sequence, int]], began_s: float, ended_s: float) -> StepReport:
        """Give each sequence what the step computed of it; the last token of a received prompt is decoding."""
        prompt_tokens = num_seqs = 0
        for sequence, num_tokens in batch:
            prompt_tokens += 0 if sequence.received_tokens else num_tokens
            num_seqs += sequence.advance(num_tokens, began_s=began_s, ended_s=ended_s)
            if sequence.done.done():
                self._complete(sequence)
        return StepReport(ended_s - began_s, prompt_tokens, num_seqs)

    def _complete(self, sequence: Sequence) -> None:
        self._remove(sequence)
        if sequence.done.cancelled() or sequence.done.exception():
            return
        self._cache.keep(sequence.generation.prompt)
        if (sent := sequence.generation.sends_transfer) and self._deliveries is not None:
            self._deliveries.deliver(sent)

    def _schedule(self) -> tuple[list[tuple[Sequence, int]], float]:
        """Choose what the next step computes: a token per decoding sequence, then prompts within the token budget.

        Returns each sequence with its prompt tokens in this step, 0 when it decodes, and the time of the step.
        """
        batch = [(sequence, 0) for sequence in self._running if sequence.owed_tokens == 0]
        num_decoding = len(batch)
        budget_tokens = left_tokens = max(1, self._spec.max_num_batched_tokens - num_decoding)
        for sequence in self._running:
            num_tokens = min(sequence.owed_tokens, left_tokens)
            if num_tokens > 0:
                batch.append((sequence, num_tokens))
                left_tokens -= num_tokens
        step_s = self._timing.step_s(num_decoding=num_decoding, prefill_tokens=budget_tokens - left_tokens)
        return batch, step_s


def _fingerprint(spec: EngineSpec) -> Fingerprint:
    return Fingerprint(
        engine="simulated",
        model=spec.served_model_name,
        tokenizer="words",
        dtype=spec.dtype,
        cache_dtype="auto",
        block_size=spec.block_size,
        layout="none",
        tensor_parallel=spec.tensor_parallel,
        pipeline_parallel=spec.pipeline_parallel,
        adapters="",
    )
