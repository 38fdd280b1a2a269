"""The seam between the session service and the worker behind it.

Owns the Protocol that cluster.worker implements with prefill_workers/ and decode_workers/, and that
cluster.session_server serves to routers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from core.engine import HttpCall, ReplySink
from core.types import Handover, Leg, LegOrder, WorkerHello, WorkerState


class Worker(Protocol):
    """One engine with the logic of its role."""

    @property
    def hello(self) -> WorkerHello:
        """What this worker says of itself."""
        ...

    async def run(self, leg: Leg, call: HttpCall, handover: Handover | None, order: LegOrder, sink: ReplySink) -> None:
        """Run one leg of a request into `sink`, in its turn; return when the reply is complete.

        Cancelling the task aborts the leg, and returns once the engine gave up its blocks.
        Raises any core.errors.BatonError; what the engine's OpenAI layer refuses is an ordinary reply.
        """
        ...

    async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        """Tell the engine that a hand-over will not come; the waiting request recomputes at once."""
        ...

    def state(self) -> WorkerState:
        """Report the load at the end of the latest engine step."""
        ...

    def on_step(self, callback: Callable[[], None]) -> None:
        """Call `callback` from the event loop after each engine step."""
        ...

    def drain(self) -> None:
        """Take no new legs; those running go on."""
        ...
