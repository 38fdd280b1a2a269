"""The prefill side of a worker: a bounded number of prefill legs on one engine.

Must not know sessions or the decode role.
"""

from __future__ import annotations

from core.engine import Engine, HttpCall, ReplySink
from core.leg_slots import LegSlots
from core.types import Handover
from prefill_workers.leg import prefill_call


class PrefillWorker:
    """Runs prefill legs; the engine queues those beyond its batch."""

    def __init__(self, engine: Engine, *, max_legs: int, tools_hidden_by_none: bool = False) -> None:
        self._engine = engine
        self._tools_hidden_by_none = tools_hidden_by_none
        self.slots = LegSlots("prefill", max_legs=max_legs)

    async def run(self, call: HttpCall, handover: Handover, sink: ReplySink) -> None:
        """Compute the prompt of `call` and send its KV to where `handover` says; the reply says only that it is done.

        Raises WorkerDraining or Overloaded before any work, else what the engine raises.
        """
        with self.slots.taken():
            leg = prefill_call(call, handover, tools_hidden_by_none=self._tools_hidden_by_none)
            await self._engine.serve(leg, sink)
