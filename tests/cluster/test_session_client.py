"""The stream between router and worker, over real sockets: order, errors, aborts, bounds, frames."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket

import pytest

from cluster.inflight import InflightWork
from cluster.session_client import WorkerSession
from core.engine import HttpCall, ReplySink
from core.errors import (
    EngineFailed,
    Overloaded,
    PayloadTooLarge,
    PromptTooLong,
    TransferTimeout,
    Unauthorized,
    WorkerLost,
)
from core.types import Handover, Leg, WorkerState
from engine.simulated import SimulatedEngine
from tests.cluster.streaming import (
    HOST,
    WAIT_S,
    BaseWorker,
    EngineWorker,
    HangingWorker,
    call,
    engine_spec,
    hello,
    read_all,
    record,
    stream,
)


class EchoWorker(BaseWorker):
    """Answers with the body in pieces of one to seven bytes, giving way between some of them."""

    async def answer(self, leg: Leg, call: HttpCall, handover: Handover | None, sink: ReplySink) -> None:
        random_ = random.Random(call.request_id)
        sink.start(207, (("x-leg", leg), ("x-handover", repr(handover)), ("x-path", call.path)))
        start = 0
        while start < len(call.body):
            end = start + random_.randint(1, 7)
            sink.body(call.body[start:end])
            start = end
            if random_.random() < 0.3:
                await asyncio.sleep(0)


class FailingWorker(BaseWorker):
    """Fails as the body says, some after the first bytes."""

    async def answer(self, leg: Leg, call: HttpCall, handover: Handover | None, sink: ReplySink) -> None:
        match call.body:
            case b"timeout":
                sink.start(200, ())
                sink.body(b"partial")
                raise TransferTimeout("the peer is silent")
            case b"too long":
                raise PromptTooLong("9000 tokens", param="prompt")
            case b"bug":
                raise ZeroDivisionError("by zero")
            case b"cancelled":
                raise asyncio.CancelledError


class FloodingWorker(BaseWorker):
    """Answers with as many pieces of 64 KiB as the body says, giving way after each."""

    async def answer(self, leg: Leg, call: HttpCall, handover: Handover | None, sink: ReplySink) -> None:
        sink.start(200, ())
        for _ in range(int(call.body)):
            sink.body(bytes(65536))
            await asyncio.sleep(0)


def completion(words: int, max_tokens: int, *, streamed: bool = True) -> bytes:
    return json.dumps({"prompt": "w " * words, "max_tokens": max_tokens, "stream": streamed}).encode()


async def test_bytes_keep_their_order_over_many_calls() -> None:
    async with stream(EchoWorker()) as s:
        handover = Handover("t1", "kv:1", 12.5)
        bodies = [random.Random(i).randbytes(500 + i) for i in range(200)]
        replies = [
            s.session.submit(Leg.DECODE, call(body, f"r{i}", "/p?q=1"), handover) for i, body in enumerate(bodies)
        ]
        heads = {await reply.head() for reply in replies}
        assert [await read_all(reply) for reply in replies] == bodies
        assert heads == {(207, (("x-leg", "decode"), ("x-handover", repr(handover)), ("x-path", "/p?q=1")))}


async def test_thousand_concurrent_calls_end_complete() -> None:
    engine = await SimulatedEngine.start(engine_spec("--step-ms", "2", max_num_seqs=256))
    async with stream(EngineWorker(engine)) as s:
        replies = [
            s.session.submit(Leg.WHOLE, call(completion(5, 8, streamed=i % 2 == 0), f"r{i}"), None, prompt_tokens=5)
            for i in range(1000)
        ]
        assert s.session.inflight_requests == 1000
        assert s.session.inflight.prompt_tokens == 5000
        async with asyncio.timeout(WAIT_S):
            bodies = await asyncio.gather(*map(read_all, replies))
        assert all(body.count(b"data: ") == 9 and body.endswith(b"data: [DONE]\n\n") for body in bodies[::2])
        assert all(len(json.loads(body)["choices"][0]["text"].split()) == 8 for body in bodies[1::2])
        assert s.session.inflight_requests == s.session.inflight.prompt_tokens == 0
        assert engine.state().kv_blocks_used == 0
    await engine.close()


async def test_aborts_at_random_points_leave_no_task_and_no_block() -> None:
    random_ = random.Random(7)
    engine = await SimulatedEngine.start(engine_spec("--step-ms", "1", "--num-kv-blocks", "64", max_num_seqs=32))
    worker = EngineWorker(engine)

    async def use(session: WorkerSession, index: int) -> None:
        reply = session.submit(Leg.WHOLE, call(completion(3, 30), f"r{index}"), None, prompt_tokens=3)
        match random_.randrange(4):
            case 0:
                pass
            case 1:
                await asyncio.sleep(0)
            case 2:
                await reply.head()
            case _:
                for _ in range(random_.randint(1, 12)):
                    await reply.read()
        reply.abort()
        reply.abort()

    async with stream(worker) as s:
        async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
            for index in range(300):
                group.create_task(use(s.session, index))
        await s.until(lambda: s.server.num_calls == 0)
        assert engine.state() == WorkerState(kv_blocks_total=64, step_s=engine.state().step_s)
        assert s.session.inflight_requests == s.session.inflight.prompt_tokens == 0
        reply = s.session.submit(Leg.WHOLE, call(completion(3, 2)), None)
        assert (await read_all(reply)).endswith(b"[DONE]\n\n")
    await engine.close()


async def test_one_frame_per_step_not_per_token() -> None:
    engine = await SimulatedEngine.start(engine_spec("--step-ms", "10", max_num_seqs=200))
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    engine.on_step(count)
    async with stream(EngineWorker(engine)) as s:
        replies = [s.session.submit(Leg.WHOLE, call(completion(2, 50), f"r{i}"), None) for i in range(100)]
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*map(read_all, replies))
        frames = s.server.frames_sent
    await engine.close()
    assert steps >= 50
    # 5,000 tokens were made. On a busy machine what one step made may leave in two frames, and states leave alone.
    assert frames <= 2 * steps


async def test_reads_return_all_that_has_arrived() -> None:
    async with stream(EchoWorker()) as s:
        reply = s.session.submit(Leg.WHOLE, call(b"z" * 3000), None)
        await s.until(lambda: reply.ended)
        assert await reply.read() == b"z" * 3000
        assert await reply.read() == b""
        assert await reply.read() == b""


async def test_errors_keep_their_class_and_come_after_the_bytes() -> None:
    async with stream(FailingWorker()) as s:
        reply = s.session.submit(Leg.WHOLE, call(b"timeout"), None)
        assert await reply.head() == (200, ())
        assert await reply.read() == b"partial"
        with pytest.raises(TransferTimeout, match=r"^the peer is silent$"):
            await reply.read()
        reply = s.session.submit(Leg.WHOLE, call(b"too long"), None)
        with pytest.raises(PromptTooLong, match="9000"):
            await reply.head()


async def test_what_is_no_deliberate_error_becomes_engine_failed(caplog: pytest.LogCaptureFixture) -> None:
    async with stream(FailingWorker()) as s:
        for body, message in ((b"bug", "ZeroDivisionError: by zero"), (b"cancelled", "cancelled"), (b"", "reply")):
            with pytest.raises(EngineFailed, match=message):
                await s.session.submit(Leg.WHOLE, call(body), None).read()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == ["call r failed"]


async def test_slow_reader_is_cut_off_and_others_go_on() -> None:
    worker = FloodingWorker()
    async with stream(worker, max_unread_bytes=1 << 20) as s:
        slow = s.session.submit(Leg.WHOLE, call(b"100000"), None)
        other = s.session.submit(Leg.WHOLE, call(b"40"), None)
        assert len(await read_all(other)) == 40 * 65536
        async with asyncio.timeout(WAIT_S):
            await worker.idle.wait()  # the flood was cancelled on the worker
        assert worker.num_cancelled == 1
        with pytest.raises(Overloaded, match="behind"):
            await slow.read()


async def test_body_beyond_the_unread_limit_passes_in_one_piece() -> None:
    async with stream(EchoLargeWorker(), max_unread_bytes=1024) as s:
        body = bytes(20 << 20)
        assert await read_all(s.session.submit(Leg.WHOLE, call(body), None)) == body


class EchoLargeWorker(BaseWorker):
    async def answer(self, leg: Leg, call: HttpCall, handover: Handover | None, sink: ReplySink) -> None:
        sink.start(200, ())
        sink.body(call.body)


async def test_full_command_queue_is_overload_and_empties() -> None:
    async with stream(EchoWorker()) as s:
        session = WorkerSession(record(s.port), token="", on_change=lambda: None, max_queued_commands=100)
        await session.connect(WAIT_S)
        replies = [session.submit(Leg.WHOLE, call(b"a"), None) for _ in range(100)]
        with pytest.raises(Overloaded, match="100 commands"):
            session.submit(Leg.WHOLE, call(b"a"), None)
        replies[0].abort()  # aborts are never refused
        async with asyncio.timeout(WAIT_S):
            assert await read_all(replies[-1]) == b"a"
            assert await read_all(session.submit(Leg.WHOLE, call(b"b"), None)) == b"b"
        await session.close()


async def test_body_beyond_the_limit_is_refused_here() -> None:
    async with stream(EchoWorker()) as s:
        session = WorkerSession(record(s.port), token="", on_change=lambda: None, max_body_bytes=10)
        await session.connect(WAIT_S)
        with pytest.raises(PayloadTooLarge, match="11 bytes"):
            session.submit(Leg.WHOLE, call(b"x" * 11), None)
        await session.close()


@pytest.mark.parametrize("token", ["", "Secret", "secret "])
async def test_wrong_token_is_refused(token: str) -> None:
    async with stream(EchoWorker(), token="secret") as s:
        session = WorkerSession(record(s.port), token=token, on_change=lambda: None)
        with pytest.raises(Unauthorized):
            await session.connect(WAIT_S)
        assert not session.alive
        assert s.server.num_sessions == 1


async def test_worker_that_is_not_the_announced_one_is_refused() -> None:
    async with stream(EchoWorker()) as s:
        session = WorkerSession(record(s.port, epoch=2), token="", on_change=lambda: None)
        with pytest.raises(WorkerLost, match="epoch 1"):
            await session.connect(WAIT_S)


async def test_address_without_worker_is_refused() -> None:
    async with stream(EchoWorker()) as s:
        port = s.port
    session = WorkerSession(record(port), token="", on_change=lambda: None)
    with pytest.raises(WorkerLost):
        await session.connect(WAIT_S)


async def test_silent_address_is_given_up_in_time() -> None:
    with socket.create_server((HOST, 0)) as listener:
        session = WorkerSession(record(listener.getsockname()[1]), token="", on_change=lambda: None)
        with pytest.raises(WorkerLost, match=r"did not answer within 0\.2 s"):
            await session.connect(0.2)


async def test_state_arrives_without_replies() -> None:
    worker = HangingWorker()
    async with stream(worker) as s:
        assert s.session.hello == hello()
        worker.end_step(WorkerState(num_running=3, kv_blocks_used=9, step_s=0.25, draining=True))
        await s.until(lambda: s.session.state == worker.current_state)


async def test_transfers_and_drain_reach_the_worker() -> None:
    worker = HangingWorker()
    async with stream(worker) as s:
        s.session.cancel_transfer("t1", "prefill died")
        s.session.drain()
        async with asyncio.timeout(WAIT_S):
            assert await worker.cancelled_transfers.get() == ("t1", "prefill died")
            await worker.drained.wait()


async def test_prompt_tokens_are_owed_until_the_first_byte() -> None:
    worker = HangingWorker()
    async with stream(worker) as s:
        whole = s.session.submit(Leg.WHOLE, call(), None, prompt_tokens=100)
        decode = s.session.submit(Leg.DECODE, call(), Handover("t", "", 1.0), prompt_tokens=1000)
        work = s.session.inflight
        assert (s.session.inflight_requests, work.prompts, work.prompt_tokens) == (2, 1, 100)
        await whole.read()
        assert (s.session.inflight_requests, work.prompts, work.prompt_tokens) == (2, 0, 0)
        assert work.context_tokens == 1100
        whole.abort()
        decode.abort()
        assert s.session.inflight_requests == 0
        assert work == InflightWork()


async def test_closing_fails_calls_and_frees_the_worker() -> None:
    worker = HangingWorker()
    async with stream(worker) as s:
        replies = [s.session.submit(Leg.WHOLE, call(), None) for _ in range(20)]
        waiting = asyncio.create_task(read_all(replies[0]))
        await replies[1].read()
        await s.session.close()
        for outcome in (waiting, replies[1].read()):
            with pytest.raises(WorkerLost):
                await outcome
        with pytest.raises(WorkerLost, match="closed"):
            s.session.submit(Leg.WHOLE, call(), None)
        async with asyncio.timeout(WAIT_S):
            await worker.idle.wait()


async def test_transfer_that_cannot_be_cancelled_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class FrozenEngine(HangingWorker):
        async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
            await super().cancel_transfer(transfer_id, reason)
            raise TransferTimeout("the engine core does not answer")

    worker = FrozenEngine()
    async with stream(worker) as s:
        s.session.cancel_transfer("t1", "prefill died")
        await s.until(lambda: bool(caplog.records))
        assert worker.cancelled_transfers.qsize() == 1
    (record_,) = caplog.records
    assert (record_.levelname, record_.exc_info) == ("WARNING", None)
    assert "t1" in record_.getMessage()


async def test_a_worker_whose_engine_core_stands_still_is_lost_until_it_goes_on() -> None:
    worker = HangingWorker()
    async with stream(worker) as opened:
        reply = opened.session.submit(Leg.WHOLE, call(), None)
        assert await reply.read() == b"x"
        worker.end_step(WorkerState(num_running=1, stalled=True))
        with pytest.raises(WorkerLost, match="its engine core stands still"):
            await reply.read()
        await worker.idle.wait()
        again = WorkerSession(record(opened.port), token="", on_change=lambda: None)
        with pytest.raises(WorkerLost, match="its engine core stands still"):
            await again.connect(WAIT_S)
        worker.end_step(WorkerState())
        back = WorkerSession(record(opened.port), token="", on_change=lambda: None)
        await back.connect(WAIT_S)
        assert back.alive
        await back.close()
