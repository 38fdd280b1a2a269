"""Shared memory between engines of one host.

Invariants: what lands is what was staged; what was copied after its stream ended is never served; memory that could
kill its reader is not mapped; who has not proved the token is told nothing; connections and descriptors do not grow
with streams.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import CorruptFrame, PeerMismatch, TransferAborted, TransferTimeout, Unauthorized
from kv_transfer.frames import HEADER_BYTES, Kind, blocks_header, control_frame
from kv_transfer.shm_connection import WINDOW, offer_memory
from kv_transfer.shm_memory import BOARD_BYTES, Board, Mark, PeerMemory
from kv_transfer.shm_transport import SCHEME, ShmTransport, short_path
from kv_transfer.staging import GROWTH_BYTES, SIZE_SEAL, Segment, StagingPool
from kv_transfer.transport import Incoming, Outgoing, StagedFrame

WAIT_S = 30.0
PING = control_frame(Kind.GRANT)


def stage(pool: StagingPool, rows: list[bytes], layer: int = 0) -> tuple[StagedFrame, Segment]:
    """Put blocks of one layer in staging memory."""
    segment = pool.take(sum(map(len, rows)))
    assert segment is not None
    segment.view[:] = b"".join(rows)
    header = blocks_header(1, layer, 0, len(rows), segment.view)
    return StagedFrame(header, segment.view, segment.offset), segment


class Pair:
    """A sender and a receiver on one loop; streams that the receiver got wait in `served`."""

    def __init__(self, run_dir: Path, *, tokens: tuple[str, str] = ("secret", "secret")) -> None:
        self.pools = StagingPool(4 << 20), StagingPool(1 << 16)
        self.sender = ShmTransport(tokens[0], self.pools[0], run_dir)
        self.receiver = ShmTransport(tokens[1], self.pools[1], run_dir)
        self.served: asyncio.Queue[Incoming] = asyncio.Queue()
        self.address = ""

    async def serve(self, incoming: Incoming) -> None:
        """Give the stream to the test, which closes it."""
        self.served.put_nowait(incoming)
        await asyncio.Event().wait()  # until the transport is closed

    async def open(self) -> tuple[Outgoing, Incoming]:
        """Open a stream; the receiver has its first frame, PING."""
        outgoing = await self.sender.connect(self.address, WAIT_S)
        await outgoing.write(PING)
        incoming = await self.served.get()
        assert (await incoming.header()).kind is Kind.GRANT
        return outgoing, incoming


@asynccontextmanager
async def pair_in(run_dir: Path, *, tokens: tuple[str, str] = ("secret", "secret")) -> AsyncIterator[Pair]:
    pair = Pair(run_dir, tokens=tokens)
    async with asyncio.timeout(WAIT_S):
        pair.address = await pair.receiver.listen("", pair.serve)
        try:
            yield pair
        finally:
            for transport in (pair.sender, pair.receiver, pair.sender):
                await transport.close()
            for pool in pair.pools:
                pool.close()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair_in(tmp_path) as pair:
        yield pair


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.binary(min_size=48, max_size=48), min_size=1, max_size=6), min_size=1, max_size=12))
def test_what_lands_is_what_was_staged(frames: list[list[bytes]]) -> None:
    async def go() -> None:
        with TemporaryDirectory() as folder:
            async with pair_in(Path(folder)) as pair:
                outgoing, incoming = await pair.open()
                await outgoing.write_blocks([stage(pair.pools[0], rows, layer)[0] for layer, rows in enumerate(frames)])
                await outgoing.write(control_frame(Kind.ABORT, b"why"))
                for layer, rows in enumerate(frames):
                    header = await incoming.header()
                    assert (header.kind, header.layer, header.num_blocks) == (Kind.BLOCKS, layer, len(rows))
                    cache = bytearray(header.size)
                    await incoming.land(header, [memoryview(cache)[at : at + 16] for at in range(0, len(cache), 16)])
                    assert bytes(cache) == b"".join(rows)
                assert await incoming.payload(await incoming.header()) == b"why"
                await incoming.write(PING)
                assert await outgoing.read() == PING
                outgoing.close()
                incoming.close()

    asyncio.run(go())


@pytest.mark.parametrize("offset", [(4 << 20) - 15, 1 << 63, (1 << 64) - 1])
async def test_payload_outside_the_memory_is_corrupt(pair: Pair, offset: int) -> None:
    outgoing, incoming = await pair.open()
    frame, _ = stage(pair.pools[0], [bytes(16)])
    await outgoing.write_blocks([StagedFrame(frame.header, frame.payload, offset)])
    row = bytearray(b"x" * 16)
    with pytest.raises(CorruptFrame, match="outside"):
        await incoming.land(await incoming.header(), [memoryview(row)])
    assert row == b"x" * 16


async def test_payload_read_after_its_stream_was_closed_is_not_served(pair: Pair) -> None:
    outgoing, incoming = await pair.open()
    frame, segment = stage(pair.pools[0], [b"a" * 16])
    await outgoing.write_blocks([frame])
    header = await incoming.header()
    outgoing.close()
    segment.view[:] = b"b" * 16  # another hand-over has the segment
    with pytest.raises(TransferAborted, match="ended the stream"):
        await incoming.land(header, [memoryview(bytearray(16))])


async def test_garbage_is_corrupt_and_can_be_answered(pair: Pair) -> None:
    outgoing, incoming = await pair.open()
    await outgoing.write(b"\x77" * HEADER_BYTES)
    with pytest.raises(CorruptFrame):
        await incoming.header()
    await incoming.write(control_frame(Kind.FAILED, b"{}"))
    incoming.close()
    assert (await outgoing.read())[0] == Kind.FAILED
    with pytest.raises(TransferAborted):
        await outgoing.read()
    outgoing.close()
    again, _ = await pair.open()  # over another connection
    again.close()


async def test_streams_share_connections_and_descriptors_stay_flat(pair: Pair) -> None:
    baseline = 0
    for index in range(200):
        outgoing, incoming = await pair.open()
        await incoming.write(PING)
        await outgoing.read()
        (incoming if index % 2 else outgoing).close()
        with pytest.raises(TransferAborted):
            await (outgoing.read() if index % 2 else incoming.header())
        outgoing.close()
        incoming.close()
        if index == 20:
            baseline = len(os.listdir("/proc/self/fd"))
    assert len(os.listdir("/proc/self/fd")) <= baseline
    assert len(pair.sender._connections) <= 2  # a stream may be opened before the last one is closed at both ends
    assert len(pair.receiver._memories) == 1


async def test_streams_at_the_same_time_do_not_mix(pair: Pair) -> None:
    opened = [await pair.open() for _ in range(5)]
    for index, (outgoing, _) in enumerate(opened):
        await outgoing.write_blocks([stage(pair.pools[0], [bytes([index]) * 16])[0]])
    for index, (_, incoming) in enumerate(opened):
        row = bytearray(16)
        await incoming.land(await incoming.header(), [memoryview(row)])
        assert row == bytes([index]) * 16
    assert len(pair.receiver._memories) == 1  # mapped once, for all connections


async def test_receiver_that_reads_nothing_holds_the_sender_back(pair: Pair) -> None:
    outgoing, incoming = await pair.open()
    frame, _ = stage(pair.pools[0], [b"c" * 16])
    row = bytearray(16)
    task = asyncio.create_task(outgoing.write_blocks([frame] * 3 * WINDOW))
    await asyncio.wait({task}, timeout=0.05)
    assert not task.done()
    for _ in range(3 * WINDOW):  # goes on when the receiver does, and nothing is lost
        row[:] = bytes(16)
        await incoming.land(await incoming.header(), [memoryview(row)])
        assert row == b"c" * 16
    await task


async def test_close_wakes_whoever_waits(pair: Pair) -> None:
    outgoing, incoming = await pair.open()
    waiting = [asyncio.create_task(outgoing.read()), asyncio.create_task(incoming.header())]
    await asyncio.sleep(0)
    outgoing.close()
    outgoing.close()
    for task in waiting:
        with pytest.raises(TransferAborted):
            await task
    with pytest.raises(TransferAborted):
        await outgoing.write(PING)
    incoming.close()
    with pytest.raises(TransferAborted):
        await incoming.write(PING)


async def test_end_of_a_transport_is_seen_at_the_other_end(pair: Pair, tmp_path: Path) -> None:
    outgoing, incoming = await pair.open()
    waiting = asyncio.create_task(outgoing.read())
    await pair.receiver.close()
    with pytest.raises(TransferAborted):
        await waiting
    with pytest.raises(TransferAborted):
        await incoming.write(PING)
    with pytest.raises(TransferAborted, match="cannot connect"):
        await pair.sender.connect(pair.address, WAIT_S)
    assert os.listdir(tmp_path) == []
    assert pair.receiver._memories == {}


@pytest.mark.parametrize("tokens", [("secret", "other"), ("", "secret")])
async def test_wrong_token_is_refused(tmp_path: Path, tokens: tuple[str, str]) -> None:
    async with pair_in(tmp_path, tokens=tokens) as pair:
        with pytest.raises(Unauthorized):
            await pair.sender.connect(pair.address, WAIT_S)
        assert pair.receiver._memories == {}


async def test_no_such_peer_and_silent_peer(pair: Pair) -> None:
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as silent:
        for missing in (f"{folder}/kv.sock", f"{folder}/none/kv.sock"):
            with pytest.raises(TransferAborted, match="cannot connect"):
                await pair.sender.connect(f"{SCHEME}{missing}", WAIT_S)
        silent.bind(f"{folder}/silent.sock")
        silent.listen()
        with pytest.raises(TransferTimeout):
            await pair.sender.connect(f"{SCHEME}{folder}/silent.sock", 0.05)


async def test_only_the_same_user_may_connect(pair: Pair) -> None:
    path = pair.address.removeprefix(SCHEME)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's identity")
async def test_another_user_is_refused_whatever_the_file_says() -> None:
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)
        async with pair_in(Path(folder)) as pair:
            path = pair.address.removeprefix(SCHEME)
            os.chmod(path, 0o666)
            with socket.socket(socket.AF_UNIX) as stranger:
                os.seteuid(65534)
                try:
                    stranger.connect(path)
                finally:
                    os.seteuid(0)
                stranger.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(stranger, 1) == b""  # not even a greeting


def memory(size: int, seals: int, *, allocated: bool = True) -> int:
    """Make shared memory as a careless or hostile peer might."""
    fd = os.memfd_create("peer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if allocated and size:
        os.posix_fallocate(fd, 0, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


BAD_MEMORY = {
    "unsealed": lambda: memory(1 << 16, 0),
    "may shrink": lambda: memory(1 << 16, fcntl.F_SEAL_GROW),
    "not allocated": lambda: memory(1 << 30, SIZE_SEAL, allocated=False),
    "a file": lambda: os.open(__file__, os.O_RDONLY),
}


@pytest.mark.parametrize("name", BAD_MEMORY)
async def test_memory_that_could_kill_its_reader_is_refused(pair: Pair, name: str) -> None:
    board, bad = Board(), BAD_MEMORY[name]()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        with short_path(Path(pair.address.removeprefix(SCHEME))) as path:
            await loop.sock_connect(sock, path)
        with pytest.raises(TransferAborted, match="did not take"):
            await offer_memory(sock, "secret", (bad, board.fd))
    with pytest.raises(PeerMismatch):
        PeerMemory(bad, board.fd)
    with pytest.raises(PeerMismatch):
        PeerMemory(board.fd, bad)
    os.close(bad)
    board.close()
    assert pair.receiver._memories == {}


def test_board_that_is_too_small_is_refused() -> None:
    board, small = Board(), memory(BOARD_BYTES - 1, SIZE_SEAL)
    with pytest.raises(PeerMismatch):
        PeerMemory(board.fd, small)
    os.close(small)
    board.close()


def test_staging_memory_never_shrinks() -> None:
    pool = StagingPool(1 << 16)
    assert pool.take(1) is not None
    with pytest.raises(PermissionError):
        os.ftruncate(pool.fd, 0)
    pool.close()


async def test_memory_that_was_allocated_after_the_peer_had_connected_is_read(tmp_path: Path) -> None:
    async with pair_in(tmp_path) as pair:
        pair.pools[0].close()
        pool = StagingPool(3 * GROWTH_BYTES)
        pair.pools, pair.sender = (pool, pair.pools[1]), ShmTransport("secret", pool, tmp_path)
        outgoing, incoming = await pair.open()
        assert pool.allocated_bytes == 0
        row = bytearray(48)
        for content in (b"a", b"b", b"c"):
            frame, _ = stage(pool, [content * 48])
            assert pool.take(GROWTH_BYTES - (1 << 16)) is not None  # the next frame needs more memory
            await outgoing.write_blocks([frame])
            await incoming.land(await incoming.header(), [memoryview(row)])
            assert row == content * 48
        assert pool.take(1) is None
        outgoing.close()


@given(st.lists(st.booleans(), max_size=40))
def test_a_stream_is_live_until_it_ends_and_never_again(steps: list[bool]) -> None:
    board = Board()
    memory = PeerMemory(board.fd, board.fd)
    live: list[Mark] = []
    dead: list[Mark] = []
    for begins in steps:
        if begins:
            live.append(board.begin())
        elif live:
            dead.append(live.pop(0))
            board.end(dead[-1])
        assert all(map(memory.is_live, live))
        assert not any(map(memory.is_live, dead))
    assert not memory.is_live(Mark(BOARD_BYTES, 0))
    board.close()
    assert not any(map(memory.is_live, live))
    memory.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from kv_transfer.frames import Kind, control_frame
from kv_transfer.shm_transport import ShmTransport
from kv_transfer.staging import StagingPool

async def serve(incoming):
    await incoming.header()
    await incoming.write(control_frame(Kind.GRANT))
    await asyncio.Event().wait()

async def main():
    transport = ShmTransport("secret", StagingPool(1 << 16), Path(sys.argv[1]))
    print(await transport.listen("", serve), flush=True)
    outgoing = await transport.connect(sys.argv[2], 30)
    await outgoing.write(control_frame(Kind.GRANT))
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_death_of_the_peer_process_is_seen_at_once(pair: Pair, tmp_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(tmp_path), pair.address, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    address = (await child.stdout.readline()).decode().strip()
    incoming = await pair.served.get()
    await incoming.header()
    outgoing = await pair.sender.connect(address, WAIT_S)
    await outgoing.write(PING)
    assert await outgoing.read() == PING
    waiting = [asyncio.create_task(outgoing.read()), asyncio.create_task(incoming.header())]
    await asyncio.sleep(0)
    child.kill()
    for task in waiting:
        with pytest.raises(TransferAborted, match="gone"):
            await task
    await child.wait()
    with pytest.raises(TransferAborted):
        await pair.sender.connect(address, WAIT_S)
    assert pair.receiver._memories == {}
