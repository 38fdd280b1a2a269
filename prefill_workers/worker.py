"""The prefill side of a worker: a bounded number of prefill legs on one engine, by slack.

Must not know sessions or the decode role.
"""

from __future__ import annotations

import time

from core.engine import Engine, HttpCall, ReplySink
from core.leg_slots import LegSlots
from core.types import Handover, LegOrder
from prefill_workers.leg import prefill_call
from prefill_workers.prompt_queue import PromptQueue


class PrefillWorker:
    """Runs prefill legs; those that the engine has no need of yet wait for their turn here."""

    def __init__(self, engine: Engine, *, max_legs: int, step_tokens: int, tools_hidden_by_none: bool = False) -> None:
        """Take the engine, how many legs it may have at a time, and how many prompt tokens it computes in one step."""
        self._engine = engine
        self._queue = PromptQueue(step_tokens=step_tokens, max_waiting=max_legs)
        self._tools_hidden_by_none = tools_hidden_by_none
        self.slots = LegSlots("prefill", max_legs=max_legs)
        engine.on_step(self._note_step)

    @property
    def num_waiting(self) -> int:
        """Count the legs that the engine does not know of yet."""
        return self._queue.num_waiting

    async def run(self, call: HttpCall, handover: Handover, order: LegOrder, sink: ReplySink) -> None:
        """Compute the prompt of `call` and send its KV to where `handover` says; the reply says only that it is done.

        Raises WorkerDraining or Overloaded before any work, else what the engine raises.
        """
        with self.slots.taken():
            now_s = time.monotonic()
            leg = prefill_call(call, handover, now_s=now_s, tools_hidden_by_none=self._tools_hidden_by_none)
            async with self._queue.turn(order):
                await self._engine.serve(leg, sink)

    def _note_step(self) -> None:
        self._queue.computed(self._engine.state().step_prompt_tokens)
