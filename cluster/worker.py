"""One worker: an engine with the legs of both roles, as the session service sees it.

Owns the choice of leg, the drain and the hello. Must not know how calls arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from core.engine import Engine, HttpCall, ReplySink
from core.errors import InvalidRequest
from core.types import Handover, Leg, LegOrder, Role, WorkerHello, WorkerState
from core.worker_spec import WorkerSpec
from decode_workers.worker import DecodeWorker
from prefill_workers.worker import PrefillWorker

# Legs beyond the engine's batch wait in its queue. Routers refuse long before this; it only bounds memory when one
# does not.
LEGS_PER_SEQUENCE_SLOT = 16
_HIDE_TOOLS_FLAG = "--exclude-tools-when-tool-choice-none"


class RoleWorker:
    """The core.worker.Worker of one engine; any role can serve any leg, the role says what it is announced for."""

    def __init__(self, spec: WorkerSpec, engine: Engine) -> None:
        max_legs = LEGS_PER_SEQUENCE_SLOT * spec.engine.max_num_seqs
        self._engine = engine
        self._prefill = PrefillWorker(
            engine,
            max_legs=max_legs,
            step_tokens=spec.engine.max_num_batched_tokens,
            tools_hidden_by_none=_HIDE_TOOLS_FLAG in spec.engine.extra_args,
        )
        self._decode = DecodeWorker(engine, max_legs=max_legs)
        self._draining = False
        self._callbacks: list[Callable[[], None]] = []  # all and only those given to on_step
        self._idle = asyncio.Event()
        self._idle.set()
        described = engine.description
        self._hello = WorkerHello(
            worker_id=spec.worker_id,
            role=spec.role,
            epoch=spec.epoch,
            model=described.model,
            max_model_len=described.max_model_len,
            kv_address=described.kv_address,
            num_kv_blocks=described.num_kv_blocks,
            fingerprint=described.fingerprint,
        )

    @property
    def hello(self) -> WorkerHello:
        """What this worker says of itself."""
        return self._hello

    async def run(self, leg: Leg, call: HttpCall, handover: Handover | None, order: LegOrder, sink: ReplySink) -> None:
        """Run one leg of a request into `sink`; see core.worker.Worker."""
        self._idle.clear()
        try:
            if leg is Leg.WHOLE:
                await self._decode.run_whole(call, sink)
            elif handover is None:
                raise InvalidRequest(f"a {leg} leg needs a hand-over")
            elif leg is Leg.PREFILL:
                await self._prefill.run(call, handover, order, sink)
            else:
                await self._decode.run(call, handover, sink)
        finally:
            if not self.num_legs:
                self._idle.set()

    async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        """Tell the engine that a hand-over will not come; the waiting request recomputes at once."""
        await self._engine.cancel_transfer(transfer_id, reason)

    def state(self) -> WorkerState:
        """Report the load at the end of the latest engine step."""
        state = self._engine.state()
        num_waiting = state.num_waiting + self._prefill.num_waiting
        return replace(state, num_waiting=num_waiting, draining=self._draining)

    def on_step(self, callback: Callable[[], None]) -> None:
        """Call `callback` from the event loop after each engine step, and when the drain begins."""
        self._callbacks.append(callback)
        self._engine.on_step(callback)

    def drain(self) -> None:
        """Take no new legs; those running go on. Idempotent."""
        if self._draining:
            return
        self._draining = True
        self._prefill.slots.drain()
        self._decode.slots.drain()
        for callback in self._callbacks:
            callback()

    @property
    def num_legs(self) -> int:
        """Count the legs that run or wait here."""
        return self._prefill.slots.num_legs + self._decode.slots.num_legs

    def take_role(self, role: Role) -> None:
        """Be announced for `role` from now on; legs of either role go on, and new ones of either are taken."""
        self._hello = replace(self._hello, role=role)

    async def idle(self) -> None:
        """Wait until no leg runs."""
        await self._idle.wait()
