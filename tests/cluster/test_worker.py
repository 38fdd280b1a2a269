"""A worker serves every leg with one engine, says who it is, and drains."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

import pytest

from cluster.worker import RoleWorker
from core.engine import EngineDescription, HttpCall, ReplySink
from core.errors import InvalidRequest, WorkerDraining
from core.types import Fingerprint, Handover, Leg, LegFacts, LegOrder, Role, WorkerHello, WorkerState
from core.worker_spec import EngineSpec, WorkerSpec

HANDOVER = Handover("t-1", "10.0.0.2:7000", 10.0)
FINGERPRINT = Fingerprint("e", "m", "t", "d", "c", 32, "l", 1, 1, "")
SPEC = WorkerSpec("prefill-0", Role.PREFILL, 4, "127.0.0.1", "/run", EngineSpec("test", "/m", "m", max_num_seqs=1))
CALL = HttpCall("r", "POST", "/v1/completions", (), b'{"prompt": "p", "max_tokens": 9}')


class EchoEngine:
    """An engine that answers with the body it was given, once told to go on."""

    def __init__(self) -> None:
        self.description = EngineDescription("m", 2048, 511, "127.0.0.1:7", FINGERPRINT)
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.callbacks: list[Callable[[], None]] = []
        self.cancelled_transfers: list[tuple[str, str]] = []

    async def serve(self, call: HttpCall, sink: ReplySink) -> None:
        await self.go_on.wait()
        sink.start(200, ())
        sink.body(call.body)

    async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        self.cancelled_transfers.append((transfer_id, reason))

    def state(self) -> WorkerState:
        return WorkerState(num_running=3)

    def on_step(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    async def failed(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def close(self) -> None:
        pass


class Body:
    """A sink that keeps the reply's body."""

    def __init__(self) -> None:
        self.data = b""

    def start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        assert status == 200

    def body(self, data: bytes) -> None:
        self.data += data

    def facts(self, facts: LegFacts) -> None:
        self.measured = facts

    def tokens(self, token_ids: Sequence[int]) -> None:
        pass


@pytest.fixture
async def engine() -> EchoEngine:
    return EchoEngine()


async def answer(worker: RoleWorker, leg: Leg, handover: Handover | None) -> object:
    sink = Body()
    await worker.run(leg, CALL, handover, LegOrder(), sink)
    return json.loads(sink.data).get("kv_transfer_params")


async def test_each_leg_gets_its_own_transfer_params(engine: EchoEngine) -> None:
    worker = RoleWorker(SPEC, engine)
    assert await answer(worker, Leg.WHOLE, None) is None
    assert await answer(worker, Leg.PREFILL, HANDOVER) == {
        "do_remote_decode": True,
        "transfer_id": "t-1",
        "peer": "10.0.0.2:7000",
        "lease_s": 10.0,
    }
    expected = {"do_remote_prefill": True, "transfer_id": "t-1", "lease_s": 10.0}
    assert await answer(worker, Leg.DECODE, HANDOVER) == expected


@pytest.mark.parametrize("leg", [Leg.PREFILL, Leg.DECODE])
async def test_a_leg_without_a_hand_over_is_refused(engine: EchoEngine, leg: Leg) -> None:
    with pytest.raises(InvalidRequest):
        await RoleWorker(SPEC, engine).run(leg, CALL, None, LegOrder(), Body())


async def test_the_hello_joins_spec_and_engine(engine: EchoEngine) -> None:
    expected = WorkerHello("prefill-0", Role.PREFILL, 4, "m", 2048, "127.0.0.1:7", 511, FINGERPRINT)
    assert RoleWorker(SPEC, engine).hello == expected


async def test_cancelled_transfers_reach_the_engine(engine: EchoEngine) -> None:
    await RoleWorker(SPEC, engine).cancel_transfer("t-1", "prefill died")
    assert engine.cancelled_transfers == [("t-1", "prefill died")]


async def test_a_drain_is_told_once_and_ends_when_idle(engine: EchoEngine) -> None:
    worker = RoleWorker(SPEC, engine)
    states: list[WorkerState] = []
    worker.on_step(lambda: states.append(worker.state()))
    engine.go_on.clear()
    running = asyncio.create_task(worker.run(Leg.DECODE, CALL, HANDOVER, LegOrder(), Body()))
    await asyncio.sleep(0)
    worker.drain()
    worker.drain()
    assert states == [WorkerState(num_running=3, draining=True)]
    for leg, handover in ((Leg.WHOLE, None), (Leg.PREFILL, HANDOVER), (Leg.DECODE, HANDOVER)):
        with pytest.raises(WorkerDraining):
            await worker.run(leg, CALL, handover, LegOrder(), Body())
    idle = asyncio.create_task(worker.idle())
    await asyncio.sleep(0)
    assert not idle.done()
    engine.go_on.set()
    await running
    async with asyncio.timeout(5):
        await idle


async def test_steps_of_the_engine_are_steps_of_the_worker(engine: EchoEngine) -> None:
    told: list[int] = []
    RoleWorker(SPEC, engine).on_step(lambda: told.append(1))
    for callback in engine.callbacks:
        callback()
    assert told == [1]


async def test_prompts_that_wait_for_their_turn_are_told_of(engine: EchoEngine) -> None:
    worker = RoleWorker(SPEC, engine)
    engine.go_on.clear()
    order = LegOrder(1.0, 100_000)
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(worker.run(Leg.PREFILL, CALL, HANDOVER, order, Body()))
        await asyncio.sleep(0)
        assert worker.state() == WorkerState(num_running=3, num_waiting=2)
        engine.go_on.set()
    assert worker.state() == WorkerState(num_running=3)
