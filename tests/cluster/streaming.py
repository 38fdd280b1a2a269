"""Workers, clients and processes for the tests of the session stream. Run as a program it is one end of a stream."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from cluster import wire
from cluster.pb import worker_pb2 as pb
from cluster.reply import Reply
from cluster.session_client import WorkerSession
from cluster.session_server import SessionServer
from core.engine import Engine, HttpCall, ReplySink
from core.handshake import RouterHandshake
from core.types import Fingerprint, Handover, Leg, LegOrder, Role, WorkerHello, WorkerRecord, WorkerState
from core.worker_spec import EngineSpec, WorkerSpec
from engine.simulated import SimulatedEngine

WAIT_S = 20.0
HOST = "127.0.0.1"
FINGERPRINT = Fingerprint("test", "m", "t", "f32", "auto", 16, "none", 1, 1, "")
CHECKOUT = Path(__file__).parents[2]


def hello(worker_id: str = "decode-0", role: Role = Role.DECODE, epoch: int = 1) -> WorkerHello:
    return WorkerHello(worker_id, role, epoch, "sim", 8192, "nowhere:0", 4096, FINGERPRINT)


def record(port: int, worker_id: str = "decode-0", role: Role = Role.DECODE, epoch: int = 1) -> WorkerRecord:
    return WorkerRecord(worker_id, role, epoch, f"{HOST}:{port}", "here")


def call(body: bytes = b"", request_id: str = "r", path: str = "/v1/completions") -> HttpCall:
    return HttpCall(request_id, "POST", path, (("content-type", "application/json"),), body)


class BaseWorker:
    """A worker that keeps what it is told; subclasses say how a call runs."""

    def __init__(self, greeting: WorkerHello | None = None) -> None:
        self.hello = greeting or hello()
        self.running = 0
        self.num_cancelled = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.busy = asyncio.Event()
        self.cancelled_transfers: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.drained = asyncio.Event()
        self.callbacks: list[Callable[[], None]] = []
        self.current_state = WorkerState()

    async def run(self, leg: Leg, call: HttpCall, handover: Handover | None, order: LegOrder, sink: ReplySink) -> None:
        self.running += 1
        self.idle.clear()
        self.busy.set()
        try:
            await self.answer(leg, call, handover, sink)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.running -= 1
            if not self.running:
                self.busy.clear()
                self.idle.set()

    async def answer(self, leg: Leg, call: HttpCall, handover: Handover | None, sink: ReplySink) -> None:
        raise NotImplementedError

    async def cancel_transfer(self, transfer_id: str, reason: str) -> None:
        self.cancelled_transfers.put_nowait((transfer_id, reason))

    def state(self) -> WorkerState:
        return self.current_state

    def on_step(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def drain(self) -> None:
        self.drained.set()

    def end_step(self, state: WorkerState) -> None:
        """Do what an engine does at the end of a step."""
        self.current_state = state
        for callback in self.callbacks:
            callback()


class HangingWorker(BaseWorker):
    """Begins each reply with one byte and never ends it."""

    async def answer(self, leg: Leg, call: HttpCall, handover: Handover | None, sink: ReplySink) -> None:
        sink.start(200, ())
        sink.body(b"x")
        await asyncio.Event().wait()


class EngineWorker(BaseWorker):
    """The least worker around an engine: every leg is the whole request."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    async def answer(self, leg: Leg, call: HttpCall, handover: Handover | None, sink: ReplySink) -> None:
        await self.engine.serve(call, sink)

    def state(self) -> WorkerState:
        return self.engine.state()

    def on_step(self, callback: Callable[[], None]) -> None:
        self.engine.on_step(callback)


def engine_spec(*flags: str, **fields: object) -> WorkerSpec:
    spec = EngineSpec("simulated", "", "sim", extra_args=flags, **fields)  # type: ignore[arg-type]
    return WorkerSpec("decode-0", Role.DECODE, 1, HOST, "", spec)


def tasks_left() -> list[str]:
    """Name the tasks of cluster/ that are not done."""
    owned = re.compile(r"session-|cancel-|membership|worker-|r\d*$")
    return [task.get_name() for task in asyncio.all_tasks() if owned.match(task.get_name())]


async def read_all(reply: Reply) -> bytes:
    data = b""
    while more := await reply.read():
        data += more
    return data


class Stream:
    """A served worker and a session to it."""

    def __init__(self, server: SessionServer, port: int, session: WorkerSession, changed: asyncio.Event) -> None:
        self.server = server
        self.port = port
        self.session = session
        self._changed = changed

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that comes with frames; the worker sends one a second at least."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.05)


@asynccontextmanager
async def stream(
    worker: BaseWorker, *, token: str = "", max_unread_bytes: int = 4 << 20, max_unsent_bytes: int = 64 << 20
) -> AsyncIterator[Stream]:
    """Serve `worker` and connect one session; leaves no task behind, and checks that."""
    async with AsyncExitStack() as stack:
        server = SessionServer(worker, host=HOST, token=token, max_unsent_bytes=max_unsent_bytes)
        port = await server.start()
        stack.push_async_callback(server.stop, 0)
        changed = asyncio.Event()
        session = WorkerSession(record(port), token=token, on_change=changed.set, max_unread_bytes=max_unread_bytes)
        stack.push_async_callback(session.close)
        await session.connect(WAIT_S)
        yield Stream(server, port, session, changed)
    assert tasks_left() == []
    assert server.num_calls == 0


class RawStream:
    """A session without WorkerSession, for routers that misbehave; it beats, and reads only when asked to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def shake_hands(self, token: str = "") -> None:
        handshake = RouterHandshake(token)
        self.writer.write(handshake.opening())
        while handshake.needed:
            self.writer.write(handshake.take(await self._reader.readexactly(handshake.needed)))

    def write(self, command: pb.Command) -> None:
        message = command.SerializeToString()
        self.writer.write(wire.length_of(message) + message)

    def write_slowly(self, call_id: int, body: bytes) -> None:
        """Send a call byte by byte."""
        command = pb.Command(submit=pb.Submit(call_id=call_id, request_id="slow", body=body)).SerializeToString()
        for byte in wire.length_of(command) + command:
            self.writer.write(bytes([byte]))

    async def read(self) -> pb.Frame | None:
        """Read the next frame; None: the worker closed the connection."""
        head = await self._reader.read(4)
        if not head:
            return None
        head += await self._reader.readexactly(4 - len(head))
        return pb.Frame.FromString(await self._reader.readexactly(int.from_bytes(head, "big")))

    async def goodbye(self) -> str:
        """Read to the end of the session; return why the worker ended it."""
        said = ""
        while (frame := await self.read()) is not None:
            assert not said, "nothing follows a goodbye"
            said = frame.goodbye
        return said

    async def beat(self) -> None:
        while True:
            self.writer.write(wire.HEARTBEAT)
            await asyncio.sleep(wire.HEARTBEAT_S)


@asynccontextmanager
async def raw_stream(port: int) -> AsyncIterator[RawStream]:
    """Open a session by hand."""
    reader, writer = await asyncio.open_connection(HOST, port)
    raw = RawStream(reader, writer)
    await raw.shake_hands()
    beating = asyncio.create_task(raw.beat())
    try:
        yield raw
    finally:
        beating.cancel()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run this file as a program; give the process and its first line; kill it at the end."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.cluster.streaming", *arguments, cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(WAIT_S):
            line = await child.stdout.readline()
        yield child, line.decode().strip()
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        child._transport.close()  # type: ignore[attr-defined]


async def _serve_engine() -> None:
    engine = await SimulatedEngine.start(engine_spec("--step-ms", "5"))
    server = SessionServer(EngineWorker(engine), host=HOST)
    sys.stdout.write(f"{await server.start()}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


async def _call_forever(port: int) -> None:
    session = WorkerSession(record(port), token="", on_change=lambda: None)
    await session.connect(WAIT_S)
    reply = session.submit(Leg.WHOLE, call(), None)
    await reply.read()
    sys.stdout.write("reading\n")
    sys.stdout.flush()
    await reply.read()


if __name__ == "__main__":
    asyncio.run(_serve_engine() if sys.argv[1] == "serve" else _call_forever(int(sys.argv[2])))
