"""The decode role runs a bounded number of legs and whole requests, and drains."""

from __future__ import annotations

import asyncio
import json

import pytest

from core.engine import EngineDescription, HttpCall, ReplySink
from core.errors import InvalidRequest, Overloaded, WorkerDraining
from core.types import Fingerprint, Handover, WorkerState
from decode_workers.worker import DecodeWorker

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
    assert worker.num_legs == 0


async def test_reading_is_never_refused() -> None:
    engine, sink = HoldingEngine(), Status()
    engine.go_on.set()
    worker = DecodeWorker(engine, max_legs=0)
    worker.drain()
    await worker.run_whole(HttpCall("r", "GET", "/v1/models", (), b""), sink)
    assert sink.status == 200
    with pytest.raises(WorkerDraining):
        await worker.run_whole(CALL, Status())


async def test_a_refused_leg_counts_no_longer() -> None:
    worker = DecodeWorker(HoldingEngine(), max_legs=1)
    several = HttpCall("r", "POST", "/v1/completions", (), b'{"prompt": "p", "n": 2}')
    with pytest.raises(InvalidRequest):
        await worker.run(several, HANDOVER, Status())
    assert worker.num_legs == 0
