"""The decode side of a worker: decode legs and whole requests, a bounded number of both on one engine.

Owns its limit and its drain. Must not know sessions or the prefill role.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.engine import Engine, HttpCall, ReplySink
from core.errors import Overloaded, WorkerDraining
from core.types import Handover
from decode_workers.leg import decode_call, whole_call


class DecodeWorker:
    """Runs decode legs and whole requests; the engine queues those beyond its batch."""

    def __init__(self, engine: Engine, *, max_legs: int) -> None:
        self._engine = engine
        self._max_legs = max_legs
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
        """Make every output token of `call`, with the prompt's KV from `handover` or computed here if it fails.

        Raises WorkerDraining or Overloaded before any work, else what the engine raises.
        """
        with self._admitted():
            await self._engine.serve(decode_call(call, handover), sink)

    async def run_whole(self, call: HttpCall, sink: ReplySink) -> None:
        """Answer `call` on this engine alone; calls that only read (GET) are never refused.

        Raises WorkerDraining or Overloaded before any work, else what the engine raises.
        """
        if call.method.upper() in ("GET", "HEAD"):
            await self._engine.serve(call, sink)
            return
        with self._admitted():
            await self._engine.serve(whole_call(call), sink)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._draining:
            raise WorkerDraining("the worker is draining")
        if self._num_legs >= self._max_legs:
            raise Overloaded(f"{self._num_legs} decode legs outstanding")
        self._num_legs += 1
        try:
            yield
        finally:
            self._num_legs -= 1
