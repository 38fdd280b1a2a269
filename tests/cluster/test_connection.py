"""Peers that do not keep to the protocol, over real sockets: none costs the worker more than its own connection."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from cluster import connection, session_server, wire
from cluster.session_client import WorkerSession
from cluster.session_server import SessionServer
from core.component_tls import ClientTLS
from core.engine import HttpCall, ReplySink
from core.errors import Unauthorized, WorkerLost
from core.handshake import GREETING_BYTES, MAGIC, REQUEST_BYTES, VERDICT_BYTES
from core.types import Handover, Leg
from tests.cluster.streaming import HOST, WAIT_S, BaseWorker, HangingWorker, call, raw_stream, read_all, record, stream
from tests.support.certificates import Authority


class EchoWorker(BaseWorker):
    async def answer(self, leg: Leg, call: HttpCall, handover: Handover | None, sink: ReplySink) -> None:
        sink.start(200, ())
        sink.body(call.body)


@asynccontextmanager
async def stranger(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect and hear the worker's greeting."""
    reader, writer = await asyncio.open_connection(HOST, port)
    async with asyncio.timeout(WAIT_S):
        assert (await reader.readexactly(GREETING_BYTES)).startswith(MAGIC)
        yield reader, writer
    writer.close()


async def closed(reader: asyncio.StreamReader) -> bytes:
    """Wait until the worker has closed the connection; return what it said before."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(
    "said",
    [
        b"",
        MAGIC,
        MAGIC + bytes(REQUEST_BYTES - len(MAGIC) - 1),
    ],
    ids=["nothing", "half", "all but one byte"],
)
async def test_stranger_that_does_not_show_the_token_in_time_is_cut_off(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stream(HangingWorker(), token="secret") as s:
        monkeypatch.setattr(connection, "HANDSHAKE_S", 0.05)
        async with stranger(s.port) as (reader, writer):
            writer.write(said)
            assert await closed(reader) == b""
        assert s.server.num_sessions == 1


@pytest.mark.parametrize("said", [MAGIC.ljust(REQUEST_BYTES), b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".ljust(4096)])
async def test_stranger_with_a_wrong_proof_is_refused_at_once(said: bytes) -> None:
    worker = HangingWorker()
    async with stream(worker, token="secret") as s:
        async with stranger(s.port) as (reader, writer):
            writer.write(said + wire.length_of(b"x" * 9) + b"x" * 9)
            assert await closed(reader) in (b"", bytes(VERDICT_BYTES))
        assert s.server.num_sessions == 1
        assert not worker.busy.is_set()


async def test_flood_of_strangers_keeps_no_router_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_server, "MAX_STRANGERS", 5)
    async with stream(EchoWorker(), token="secret") as s:
        flood = [await asyncio.open_connection(HOST, s.port) for _ in range(20)]
        second = WorkerSession(record(s.port), token="secret", on_change=lambda: None)
        await second.connect(WAIT_S)
        assert await read_all(second.submit(Leg.WHOLE, call(b"a"), None)) == b"a"
        await second.close()
        async with asyncio.timeout(WAIT_S):
            for reader, _ in flood[:15]:
                assert await closed(reader) != b"waits for ever"
        for _, writer in flood:
            writer.close()


@pytest.mark.parametrize(
    "said",
    [
        (2**32 - 1).to_bytes(4, "big"),
        (wire.DEFAULT_MAX_BODY_BYTES + wire.ENVELOPE_BYTES + 1).to_bytes(4, "big"),
        wire.length_of(b"\xff" * 50) + b"\xff" * 50,
    ],
    ids=["longest", "one byte too long", "garbage"],
)
async def test_router_that_talks_nonsense_loses_its_session_only(said: bytes) -> None:
    worker = HangingWorker()
    async with stream(worker) as s, raw_stream(s.port) as rude:
        await rude.read()
        await s.until(lambda: s.server.num_sessions == 2)
        rude.writer.write(said)
        await s.until(lambda: s.server.num_sessions == 1)
        assert s.session.alive


async def test_half_a_message_waits_for_its_other_half() -> None:
    async with stream(EchoWorker()) as s, raw_stream(s.port) as slow:
        async with asyncio.timeout(WAIT_S):
            await slow.read()
            slow.write_slowly(call_id=7, body=b"pieces")
            data = b""
            while not data:
                frame = await slow.read()
                assert frame is not None
                data = b"".join(chunk.data for chunk in frame.chunks)
        assert data == b"pieces"


async def test_worker_that_talks_nonsense_is_lost() -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(lie, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    session = WorkerSession(record(port), token="", on_change=lambda: None)
    with pytest.raises(WorkerLost, match="no worker of this version"):
        await session.connect(WAIT_S)
    server.close()


async def test_what_the_router_does_not_read_is_gathered_until_it_does() -> None:

    class Burst(BaseWorker):
        async def answer(self, leg: Leg, call: HttpCall, handover: Handover | None, sink: ReplySink) -> None:
            sink.start(200, ())
            for _ in range(600):
                sink.body(bytes(65536))
                await asyncio.sleep(0)

    worker = Burst()
    async with stream(worker, max_unsent_bytes=64 << 20) as s, raw_stream(s.port) as deaf:
        deaf.write_slowly(call_id=1, body=b"")
        async with asyncio.timeout(WAIT_S):
            await worker.busy.wait()
            await worker.idle.wait()
        frames = s.server.frames_sent
        received = 0
        async with asyncio.timeout(WAIT_S):
            while received < 600 * 65536:
                frame = await deaf.read()
                assert frame is not None
                received += sum(len(chunk.data) for chunk in frame.chunks)
        assert frames < 200  # 600 pieces were made; what the router did not read was gathered


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, key and all, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=worker", "-addext", f"subjectAltName=IP:{HOST}", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


async def hear(session: WorkerSession) -> str:
    """Connect, which must fail at once and not when time is up; return what is said of it."""
    with pytest.raises(WorkerLost) as caught:
        await session.connect(2 * WAIT_S)
    await session.close()
    assert "did not answer" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_only_components_of_one_authority_talk(
    tmp_path: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    ours, others = Authority(tmp_path), Authority(tmp_path, "other")
    worker_tls, router_tls, stranger = ours.component("worker"), ours.component("router"), others.component("stranger")
    without = ClientTLS(ssl.create_default_context(cafile=worker_tls.ca), "baton")
    faults: list[tuple[ClientTLS | None, str]] = [
        (stranger.for_clients(), "not signed by security.ca of this end"),
        (replace(stranger, ca=router_tls.ca).for_clients(), "security.ca there must have signed security.cert here"),
        (replace(router_tls, name="west").for_clients(), "does not carry security.name"),
        (without, "security.ca there must have signed security.cert here"),
        (None, "if it wants TLS: give both ends the same security section"),
    ]

    def session(port: int, tls: ClientTLS | None) -> WorkerSession:
        return WorkerSession(record(port), token="secret", on_change=lambda: None, tls=tls)

    async def talk() -> None:
        server = SessionServer(EchoWorker(), host=HOST, token="secret", tls=worker_tls.for_servers())
        port = await server.start()
        for tls, words in faults:
            assert words in await hear(session(port, tls))
        assert server.num_sessions == 0
        good = session(port, router_tls.for_clients())
        await good.connect(WAIT_S)
        async with asyncio.timeout(WAIT_S):
            assert await read_all(good.submit(Leg.WHOLE, call(b"hello"), None)) == b"hello"
        await good.close()
        await server.stop(0)
        plain = SessionServer(EchoWorker(), host=HOST, token="secret")
        assert "does not speak TLS" in await hear(session(await plain.start(), router_tls.for_clients()))
        assert plain.num_sessions == 0
        await plain.stop(0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(talk())


async def test_a_certificate_does_not_stand_in_for_the_token(tmp_path: Path) -> None:
    tls = Authority(tmp_path).component("node")
    server = SessionServer(EchoWorker(), host=HOST, token="secret", tls=tls.for_servers())
    port = await server.start()
    session = WorkerSession(record(port), token="guess", on_change=lambda: None, tls=tls.for_clients())
    with pytest.raises(Unauthorized):
        await session.connect(WAIT_S)
    await session.close()
    await server.stop(0)


def test_session_over_tls(certificate: Path) -> None:
    async def talk() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        server = SessionServer(EchoWorker(), host=HOST, token="secret", tls=context)
        port = await server.start()
        doubting = WorkerSession(
            record(port), token="secret", on_change=lambda: None, tls=ClientTLS(ssl.create_default_context())
        )
        with pytest.raises(WorkerLost, match="certificate"):
            await doubting.connect(WAIT_S)
        plain = WorkerSession(record(port), token="secret", on_change=lambda: None)
        with pytest.raises(WorkerLost):
            await plain.connect(0.3)
        trusting = ClientTLS(ssl.create_default_context(cafile=str(certificate)))
        session = WorkerSession(record(port), token="secret", on_change=lambda: None, tls=trusting)
        await session.connect(WAIT_S)
        body = bytes(range(256)) * 20_000
        replies = [session.submit(Leg.WHOLE, call(body[: 1 << i]), None) for i in range(23)]
        async with asyncio.timeout(WAIT_S):
            assert [await read_all(reply) for reply in replies] == [body[: 1 << i] for i in range(23)]
        assert server.num_sessions == 1
        await session.close()
        await server.stop(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(talk())
