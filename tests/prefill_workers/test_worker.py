"""The prefill role runs a bounded number of legs, in turn, and drains."""

from __future__ import annotations

import asyncio
import json

import pytest

from core.errors import Overloaded, WorkerDraining
from core.types import LegOrder
from prefill_workers.worker import PrefillWorker
from tests.support.holding_engine import CALL, HANDOVER, HoldingEngine, Status

ORDER = LegOrder(1.0, 10)


async def test_the_engine_gets_the_prefill_leg() -> None:
    engine, sink = HoldingEngine(), Status()
    engine.go_on.set()
    await PrefillWorker(engine, max_legs=1, step_tokens=100).run(CALL, HANDOVER, ORDER, sink)
    assert sink.status == 200
    assert json.loads(engine.calls[0].body)["kv_transfer_params"]["peer"] == "10.0.0.2:7000"


async def test_a_full_role_refuses_and_recovers() -> None:
    engine = HoldingEngine()
    worker = PrefillWorker(engine, max_legs=2, step_tokens=100)
    running = [asyncio.create_task(worker.run(CALL, HANDOVER, ORDER, Status())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await worker.run(CALL, HANDOVER, ORDER, Status())
    running[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await running[0]
    assert worker.slots.num_legs == 1
    engine.go_on.set()
    await worker.run(CALL, HANDOVER, ORDER, Status())
    await running[1]
    assert worker.slots.num_legs == 0


async def test_a_draining_role_ends_what_runs() -> None:
    engine = HoldingEngine()
    worker = PrefillWorker(engine, max_legs=2, step_tokens=100)
    sink = Status()
    running = asyncio.create_task(worker.run(CALL, HANDOVER, ORDER, sink))
    await asyncio.sleep(0)
    worker.slots.drain()
    with pytest.raises(WorkerDraining):
        await worker.run(CALL, HANDOVER, ORDER, Status())
    engine.go_on.set()
    await running
    assert (sink.status, worker.slots.num_legs) == (200, 0)


async def test_legs_that_wait_are_ended_by_a_drain_in_turn() -> None:
    engine = HoldingEngine()
    worker = PrefillWorker(engine, max_legs=4, step_tokens=100)
    async with asyncio.TaskGroup() as group:
        legs = [group.create_task(worker.run(CALL, HANDOVER, LegOrder(s, 500), Status())) for s in (1.0, 9.0, 5.0)]
        await asyncio.sleep(0)
        assert (len(engine.calls), worker.num_waiting, worker.slots.num_legs) == (1, 2, 3)
        worker.slots.drain()
        legs[1].cancel()
        await asyncio.wait([legs[1]])
        assert (worker.num_waiting, worker.slots.num_legs) == (1, 2)
        engine.go_on.set()
    assert (len(engine.calls), worker.num_waiting, worker.slots.num_legs) == (2, 0, 0)


async def test_the_next_leg_goes_over_before_the_engine_is_idle() -> None:
    engine = HoldingEngine()
    worker = PrefillWorker(engine, max_legs=4, step_tokens=100)
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(worker.run(CALL, HANDOVER, LegOrder(1.0, 500), Status()))
        await asyncio.sleep(0)
        for _ in range(4):
            engine.end_step(100)
        assert worker.num_waiting == 1
        engine.end_step(60)
        assert worker.num_waiting == 0
        engine.go_on.set()
    assert len(engine.calls) == 2
