"""The decode side of a worker: decode legs and whole requests, a bounded number of both on one engine.

Must not know sessions or the prefill role.
"""

from __future__ import annotations

from core.engine import Engine, HttpCall, ReplySink
from core.leg_slots import LegSlots
from core.types import Handover
from decode_workers.leg import decode_call, whole_call


class DecodeWorker:
    """Runs decode legs and whole requests; the engine queues those beyond its batch."""

    def __init__(self, engine: Engine, *, max_legs: int) -> None:
        self._engine = engine
        self.slots = LegSlots("decode", max_legs=max_legs)

    async def run(self, call: HttpCall, handover: Handover, sink: ReplySink) -> None:
        """Make every output token of `call`, with the prompt's KV from `handover` or computed here if it fails.

        Raises WorkerDraining or Overloaded before any work, else what the engine raises.
        """
        with self.slots.taken():
            await self._engine.serve(decode_call(call, handover), sink)

    async def run_whole(self, call: HttpCall, sink: ReplySink) -> None:
        """Answer `call` on this engine alone; calls that only read (GET) are never refused.

        Raises WorkerDraining or Overloaded before any work, else what the engine raises.
        """
        if call.method.upper() in ("GET", "HEAD"):
            await self._engine.serve(call, sink)
            return
        with self.slots.taken():
            await self._engine.serve(whole_call(call), sink)
