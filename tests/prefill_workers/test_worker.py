"""The prefill role runs a bounded number of legs and drains."""

from __future__ import annotations

import asyncio
import json

import pytest

from core.errors import Overloaded, WorkerDraining
from prefill_workers.worker import PrefillWorker
from tests.support.holding_engine import CALL, HANDOVER, HoldingEngine, Status


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
    assert worker.slots.num_legs == 1
    engine.go_on.set()
    await worker.run(CALL, HANDOVER, Status())
    await running[1]
    assert worker.slots.num_legs == 0


async def test_a_draining_role_ends_what_runs() -> None:
    engine = HoldingEngine()
    worker = PrefillWorker(engine, max_legs=2)
    sink = Status()
    running = asyncio.create_task(worker.run(CALL, HANDOVER, sink))
    await asyncio.sleep(0)
    worker.slots.drain()
    with pytest.raises(WorkerDraining):
        await worker.run(CALL, HANDOVER, Status())
    engine.go_on.set()
    await running
    assert (sink.status, worker.slots.num_legs) == (200, 0)
