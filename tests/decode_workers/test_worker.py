"""The decode role runs a bounded number of legs and whole requests, and drains."""

from __future__ import annotations

import asyncio
import json

import pytest

from core.engine import HttpCall
from core.errors import InvalidRequest, Overloaded, WorkerDraining
from decode_workers.worker import DecodeWorker
from tests.support.holding_engine import CALL, HANDOVER, HoldingEngine, Status


async def test_the_engine_gets_the_decode_leg() -> None:
    engine, sink = HoldingEngine(), Status()
    engine.go_on.set()
    await DecodeWorker(engine, max_legs=1).run(CALL, HANDOVER, sink)
    assert sink.status == 200
    assert json.loads(engine.calls[0].body) == {
        "prompt": "p",
        "max_tokens": 9,
        "kv_transfer_params": {"do_remote_prefill": True, "transfer_id": "t-1", "lease_s": 10.0},
    }


async def test_a_whole_call_reaches_the_engine_without_transfer_fields() -> None:
    engine = HoldingEngine()
    engine.go_on.set()
    body = b'{"prompt": "p", "kv_transfer_params": {"do_remote_prefill": true}}'
    await DecodeWorker(engine, max_legs=1).run_whole(HttpCall("r", "POST", "/v1/completions", (), body), Status())
    assert json.loads(engine.calls[0].body) == {"prompt": "p"}


async def test_legs_and_whole_requests_share_one_limit() -> None:
    engine = HoldingEngine()
    worker = DecodeWorker(engine, max_legs=2)
    running = [
        asyncio.create_task(worker.run(CALL, HANDOVER, Status())),
        asyncio.create_task(worker.run_whole(CALL, Status())),
    ]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await worker.run(CALL, HANDOVER, Status())
    with pytest.raises(Overloaded):
        await worker.run_whole(CALL, Status())
    engine.go_on.set()
    await asyncio.gather(*running)
    assert worker.slots.num_legs == 0


async def test_reading_is_never_refused() -> None:
    engine, sink = HoldingEngine(), Status()
    engine.go_on.set()
    worker = DecodeWorker(engine, max_legs=0)
    worker.slots.drain()
    await worker.run_whole(HttpCall("r", "GET", "/v1/models", (), b""), sink)
    assert sink.status == 200
    with pytest.raises(WorkerDraining):
        await worker.run_whole(CALL, Status())


async def test_a_refused_leg_counts_no_longer() -> None:
    worker = DecodeWorker(HoldingEngine(), max_legs=1)
    several = HttpCall("r", "POST", "/v1/completions", (), b'{"prompt": "p", "n": 2}')
    with pytest.raises(InvalidRequest):
        await worker.run(several, HANDOVER, Status())
    assert worker.slots.num_legs == 0
