"""The prefill role runs a bounded number of legs and drains."""

from __future__ import annotations

import asyncio
import json

import pytest

from core.engine import EngineDescription, HttpCall, ReplySink
from core.errors import Overloaded, WorkerDraining
from core.types import Fingerprint, Handover, WorkerState
from prefill_workers.worker import PrefillWorker

HANDOVER = Handover("t-1", "10.0.0.2:7000", 10.0)
CALL = HttpCall("r", "POST", "/v1/completions", (), b'{"prompt": "p", "max_tokens": 9}')


class HoldingEngine:
    """An engine whose calls end when told to."""

    def __init__(self) -> None:
        self.calls: list[HttpCall] = []
        self.go_on = asyncio.Event()
        self.description = EngineDescription("m", 10, 10, "", Fingerprint("", "", "", "", "", 0, "", 1, 1, ""))

    async def serve(self, call: HttpCall, sink: ReplySink) -> None:
        self.calls.append(call)
        await self.go_on.wait()
        sink.start(200, ())

    async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        raise NotImplementedError

    def state(self) -> WorkerState:
        return WorkerState()

    def on_step(self, callback: object) -> None:
        raise NotImplementedError

    async def failed(self) -> str:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class Status:
    """A sink that keeps the status."""

    def __init__(self) -> None:
        self.status = 0

    def start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        self.status = status

    def body(self, data: bytes) -> None:
        raise AssertionError(data)


async def test_the_engine_gets_the_prefill_leg() -> None:
    engine, sink = HoldingEngine(), Status()
    engine.go_on.set()
    await PrefillWorker(engine, max_legs=1).run(CALL, HANDOVER, sink)
    assert sink.status == 200
    assert json.loads(engine.calls[0].body)["kv_transfer_params"]["peer"] == "10.0.0.2:7000"


async def test_a_full_role_refuses_and_recovers() -> None:
    engine = HoldingEngine()
    worker = PrefillWorker(engine, max_legs=2)
    running = [asyncio.create_task(worker.run(CALL, HANDOVER, Status())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await worker.run(CALL, HANDOVER, Status())
    running[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await running[0]
    assert worker.num_legs == 1
    engine.go_on.set()
    await worker.run(CALL, HANDOVER, Status())
    await running[1]
    assert worker.num_legs == 0


async def test_a_draining_role_ends_what_runs() -> None:
    engine = HoldingEngine()
    worker = PrefillWorker(engine, max_legs=2)
    sink = Status()
    running = asyncio.create_task(worker.run(CALL, HANDOVER, sink))
    await asyncio.sleep(0)
    worker.drain()
    with pytest.raises(WorkerDraining):
        await worker.run(CALL, HANDOVER, Status())
    engine.go_on.set()
    await running
    assert (sink.status, worker.num_legs) == (200, 0)
