"""The worker's end of the stream: several routers, those that misbehave, those that vanish, and its own end."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from cluster import wire
from cluster.pb import worker_pb2 as pb
from cluster.session_client import WorkerSession
from cluster.session_server import SessionServer
from core.engine import HttpCall, ReplySink
from core.errors import StartFailed, WorkerDraining, WorkerLost
from core.types import Handover, Leg
from tests.cluster.streaming import (
    HOST,
    WAIT_S,
    BaseWorker,
    HangingWorker,
    call,
    process,
    raw_stream,
    read_all,
    record,
    stream,
)

NOTICED_S = 4.5  # 3 s of silence, and room for a busy machine


class GatedWorker(BaseWorker):
    """Answers once its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def answer(self, leg: Leg, call: HttpCall, handover: Handover | None, sink: ReplySink) -> None:
        await self.gate.wait()
        sink.start(200, ())
        sink.body(b"late")


class EndlessWorker(BaseWorker):
    """Produces for ever."""

    async def answer(self, leg: Leg, call: HttpCall, handover: Handover | None, sink: ReplySink) -> None:
        sink.start(200, ())
        while True:
            sink.body(bytes(65536))
            await asyncio.sleep(0.001)


def submit(call_id: int) -> pb.Command:
    return pb.Command(submit=pb.Submit(call_id=call_id, request_id=f"r{call_id}"))


async def test_routers_share_a_worker_and_do_not_see_each_other() -> None:
    worker = GatedWorker()
    async with stream(worker) as s:
        second = WorkerSession(record(s.port), token="", on_change=lambda: None)
        await second.connect(WAIT_S)
        mine, theirs = s.session.submit(Leg.WHOLE, call(), None), second.submit(Leg.WHOLE, call(), None)
        assert mine.call_id == theirs.call_id
        await s.until(lambda: worker.running == 2)
        await second.close()
        await s.until(lambda: worker.running == 1)
        worker.gate.set()
        assert await read_all(mine) == b"late"
        with pytest.raises(WorkerLost):
            await theirs.read()


async def test_router_that_does_not_read_loses_its_session_only() -> None:
    worker = EndlessWorker()
    async with stream(worker, max_unsent_bytes=1 << 20) as s, raw_stream(s.port) as deaf:
        first = await deaf.read()
        assert first is not None
        assert first.hello.worker_id == "decode-0"
        deaf.write(submit(1))
        async with asyncio.timeout(WAIT_S):
            await worker.busy.wait()
            await worker.idle.wait()
        assert s.session.alive
        async with asyncio.timeout(WAIT_S):
            assert "the router does not read" in await deaf.goodbye()
        await s.until(lambda: s.server.num_sessions == 1)


async def test_stop_does_not_wait_for_a_router_that_does_not_read() -> None:
    worker = EndlessWorker()
    async with stream(worker, max_unsent_bytes=1 << 20) as s, raw_stream(s.port) as deaf:
        deaf.write(submit(1))
        async with asyncio.timeout(WAIT_S):
            await worker.busy.wait()
            await worker.idle.wait()
            await s.server.stop(0)


async def test_call_id_used_twice_ends_the_session() -> None:
    worker = HangingWorker()
    async with stream(worker) as s, raw_stream(s.port) as rude:
        rude.write(submit(1))
        rude.write(submit(1))
        async with asyncio.timeout(WAIT_S):
            assert await rude.goodbye() == "call id 1 is in use"
            await worker.idle.wait()


async def test_leg_of_a_newer_router_is_refused_by_name() -> None:
    async with stream(HangingWorker()) as s, raw_stream(s.port) as newer:
        newer.write(pb.Command(submit=pb.Submit(call_id=5, leg=17)))  # type: ignore[arg-type]
        chunks: list[pb.Chunk] = []
        while not chunks:
            frame = await newer.read()
            assert frame is not None
            chunks.extend(frame.chunks)
        assert [(c.call_id, c.last, c.error) for c in chunks] == [(5, True, "worker_error")]


async def test_idle_session_gets_a_heartbeat_a_second() -> None:
    async with stream(HangingWorker()) as s, raw_stream(s.port) as idle:
        await idle.read()
        began_s = time.monotonic()
        for _ in range(3):
            frame = await idle.read()
            assert frame is not None
            assert frame.HasField("state")
            assert not frame.chunks
        assert 2.0 <= time.monotonic() - began_s <= 4.5


async def test_stop_lets_calls_end_and_refuses_new_ones() -> None:
    worker = GatedWorker()
    async with stream(worker) as s:
        running = s.session.submit(Leg.WHOLE, call(), None)
        async with asyncio.timeout(WAIT_S):
            await worker.busy.wait()
        stopping = asyncio.create_task(s.server.stop(WAIT_S))
        await asyncio.sleep(0)
        with pytest.raises(WorkerDraining):
            await s.session.submit(Leg.WHOLE, call(), None).read()
        worker.gate.set()
        assert await read_all(running) == b"late"
        async with asyncio.timeout(WAIT_S):
            await stopping
            await s.session.lost.wait()
        assert s.session.lost_reason == "the worker ended the stream"


async def test_stop_cancels_what_outlives_the_grace() -> None:
    worker = HangingWorker()
    async with stream(worker) as s:
        reply = s.session.submit(Leg.WHOLE, call(), None)
        await reply.read()
        await s.server.stop(0.05)
        assert worker.num_cancelled == 1
        with pytest.raises(WorkerLost):
            await reply.read()


async def test_taken_port_is_an_error() -> None:
    async with stream(HangingWorker()) as s:
        with pytest.raises(StartFailed, match=str(s.port)):
            await SessionServer(HangingWorker(), host=HOST, port=s.port).start()


@pytest.mark.parametrize(
    ("blow", "within_s"), [(signal.SIGKILL, 1.5), (signal.SIGSTOP, NOTICED_S)], ids=["killed", "frozen"]
)
async def test_lost_worker_is_noticed_in_time(blow: signal.Signals, within_s: float) -> None:
    async with process("serve") as (child, port):
        session = WorkerSession(record(int(port)), token="", on_change=lambda: None)
        await session.connect(WAIT_S)
        body = b'{"prompt": "a", "max_tokens": 8000, "stream": true}'
        reply = session.submit(Leg.WHOLE, call(body), None)
        await reply.read()
        child.send_signal(blow)
        began_s = time.monotonic()
        with pytest.raises(WorkerLost):
            async with asyncio.timeout(WAIT_S):
                await read_all(reply)
        assert time.monotonic() - began_s < within_s
        assert not session.alive
        await session.close()


@pytest.mark.parametrize(
    ("blow", "within_s"), [(signal.SIGKILL, 1.5), (signal.SIGSTOP, NOTICED_S)], ids=["killed", "frozen"]
)
async def test_calls_of_a_lost_router_are_cancelled_in_time(blow: signal.Signals, within_s: float) -> None:
    worker = HangingWorker()
    async with stream(worker) as s, process("call", str(s.port)) as (child, said):
        assert (said, worker.running) == ("reading", 1)
        child.send_signal(blow)
        began_s = time.monotonic()
        async with asyncio.timeout(WAIT_S):
            await worker.idle.wait()
        assert time.monotonic() - began_s < within_s
        await s.until(lambda: s.server.num_sessions == 1)


async def test_busy_worker_that_is_frozen_is_given_up_in_about_a_second() -> None:
    """An idle one is given more time; and one that thaws finds its session closed, its calls with it."""
    async with process("serve") as (child, port):
        session = WorkerSession(record(int(port)), token="", on_change=lambda: None)
        await session.connect(WAIT_S)
        reply = session.submit(Leg.WHOLE, call(b'{"prompt": "a", "max_tokens": 4000, "stream": true}'), None)
        assert await reply.read()
        child.send_signal(signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            with pytest.raises(WorkerLost, match="no frame for 1 s"):
                await read_all(reply)
            assert time.monotonic() - began_s < NOTICED_S
        finally:
            child.send_signal(signal.SIGCONT)
        changed = asyncio.Event()
        again = WorkerSession(record(int(port)), token="", on_change=changed.set)
        await again.connect(WAIT_S)
        async with asyncio.timeout(WAIT_S):
            while again.state.num_running:
                changed.clear()
                await changed.wait()
        await again.close()


async def test_busy_worker_is_never_silent_for_long() -> None:
    """Though it makes nothing: a prompt may take seconds."""
    async with stream(HangingWorker()) as s, raw_stream(s.port) as busy:
        busy.write(submit(1))
        began_s = time.monotonic()
        async with asyncio.timeout(WAIT_S):
            for _ in range(4):
                assert await busy.read() is not None
        assert time.monotonic() - began_s < 4 * wire.BUSY_SILENCE_S


def stall(seconds: float) -> None:
    """Block the event loop, as a long collection or a large document does."""
    time.sleep(seconds)


async def test_own_stall_is_not_held_against_the_worker() -> None:
    async with process("serve") as (_, port):
        session = WorkerSession(record(int(port)), token="", on_change=lambda: None, silence_s=1.0)
        await session.connect(WAIT_S)
        stall(2.5)
        body = b'{"prompt": "a", "max_tokens": 3, "stream": true}'
        assert (await read_all(session.submit(Leg.WHOLE, call(body), None))).endswith(b"[DONE]\n\n")
        assert session.alive
        await session.close()
