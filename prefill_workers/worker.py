"""The prefill side of a worker: a bounded number of prefill legs on one engine.

Owns its limit and its drain. Must not know sessions or the decode role.
"""

from __future__ import annotations

from core.engine import Engine, HttpCall, ReplySink
from core.errors import Overloaded, WorkerDraining
from core.types import Handover
from prefill_workers.leg import prefill_call


class PrefillWorker:
    """Runs prefill legs; the engine queues those beyond its batch."""

    def __init__(self, engine: Engine, *, max_legs: int, tools_hidden_by_none: bool = False) -> None:
        self._engine = engine
        self._max_legs = max_legs
        self._tools_hidden_by_none = tools_hidden_by_none
        self._num_legs = 0
        self._draining = False

    @property
    def num_legs(self) -> int:
        """How many legs run or wait in the engine."""
        return self._num_legs

    def drain(self) -> None:
        """Take no new legs; those running go on."""
        self._draining = True

    async def run(self, call: HttpCall, handover: Handover, sink: ReplySink) -> None:
        """Compute the prompt of `call` and send its KV to where `handover` says; the reply says only that it is done.

        Raises WorkerDraining or Overloaded before any work, else what the engine raises.
        """
        if self._draining:
            raise WorkerDraining("the worker is draining")
        if self._num_legs >= self._max_legs:
            raise Overloaded(f"{self._num_legs} prefill legs outstanding")
        self._num_legs += 1
        try:
            leg = prefill_call(call, handover, tools_hidden_by_none=self._tools_hidden_by_none)
            await self._engine.serve(leg, sink)
        finally:
            self._num_legs -= 1
