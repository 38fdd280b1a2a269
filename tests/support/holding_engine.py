"""An engine whose calls end when the test says so, and the call and sink to try it with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from core.engine import EngineDescription, HttpCall, ReplySink
from core.types import Fingerprint, Handover, LegFacts, WorkerState

HANDOVER = Handover("t-1", "10.0.0.2:7000", 10.0)
CALL = HttpCall("r", "POST", "/v1/completions", (), b'{"prompt": "p", "max_tokens": 9}')


class HoldingEngine:
    """An engine whose calls end when told to."""

    def __init__(self) -> None:
        self.calls: list[HttpCall] = []
        self.go_on = asyncio.Event()
        self.callbacks: list[Callable[[], None]] = []
        self.current_state = WorkerState()
        self.description = EngineDescription("m", 10, 10, "", Fingerprint("", "", "", "", "", 0, "", 1, 1, ""))

    async def serve(self, call: HttpCall, sink: ReplySink) -> None:
        self.calls.append(call)
        await self.go_on.wait()
        sink.start(200, ())

    async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        raise AssertionError("no role calls this")

    def state(self) -> WorkerState:
        return self.current_state

    def on_step(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def end_step(self, step_prompt_tokens: int) -> None:
        """Do what an engine does at the end of a step."""
        self.current_state = WorkerState(step_prompt_tokens=step_prompt_tokens)
        for callback in self.callbacks:
            callback()

    async def failed(self) -> str:
        raise AssertionError("no role calls this")

    async def close(self) -> None:
        raise AssertionError("no role calls this")


class Status:
    """A sink that keeps the status."""

    def __init__(self) -> None:
        self.status = 0

    def start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        self.status = status

    def body(self, data: bytes) -> None:
        raise AssertionError(data)

    def facts(self, facts: LegFacts) -> None:
        self.measured = facts

    def tokens(self, token_ids: Sequence[int]) -> None:
        pass
