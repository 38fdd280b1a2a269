"""KV by NIXL: what lands is what was staged, in registered rows and in others. Skipped where the library is not."""

from __future__ import annotations

import asyncio
import importlib.util
import mmap
import os
import sys
import time
from collections.abc import AsyncIterator

import pytest

from core.errors import ConfigError, TransferAborted
from kv_transfer.frames import Kind, blocks_header, control_frame
from kv_transfer.nixl_transport import CREDIT_BYTES, NixlTransport
from kv_transfer.staging import StagingPool
from kv_transfer.transport import Incoming, StagedFrame

WAIT_S = 30.0
BLOCK, COUNT = 65536, 8
needs_nixl = pytest.mark.skipif(importlib.util.find_spec("nixl") is None, reason="the nixl library is not installed")


class Ends:
    """Two transports, and the streams that came in."""

    def __init__(self) -> None:
        self.pool = StagingPool(32 << 20)
        self.sender = NixlTransport("secret", self.pool)
        self.cache = memoryview(mmap.mmap(-1, 64 * BLOCK))
        self.receiver = NixlTransport("secret", self.pool, [self.cache])
        self.accepted: asyncio.Queue[Incoming] = asyncio.Queue()

    async def serve(self, incoming: Incoming) -> None:
        self.accepted.put_nowait(incoming)
        await incoming._link.lost.wait()  # type: ignore[attr-defined]

    def stage(self, num_blocks: int, block_bytes: int) -> StagedFrame:
        segment = self.pool.take(num_blocks * block_bytes)
        assert segment is not None
        segment.view[:] = os.urandom(segment.view.nbytes)
        return StagedFrame(blocks_header(7, 0, 0, num_blocks, segment.view), segment.view, segment.offset)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    yield made
    async with asyncio.timeout(WAIT_S):
        for transport in (made.sender, made.receiver):
            await transport.close()
            await transport.close()
    made.pool.close()


@needs_nixl
async def test_what_lands_is_what_was_staged(ends: Ends) -> None:
    async with asyncio.timeout(WAIT_S):
        stream = await ends.sender.connect(await ends.receiver.listen("127.0.0.1", ends.serve), WAIT_S)
        incoming = await ends.accepted.get()
        for order in (range(COUNT), (9, 3, 40, 1, 63, 2, 17, 8)):
            frame = ends.stage(COUNT, BLOCK)
            await stream.write_blocks([frame])
            rows = [ends.cache[i * BLOCK : (i + 1) * BLOCK] for i in order]
            await incoming.land(await incoming.header(), rows)
            assert b"".join(rows) == frame.payload
        await incoming.write(control_frame(Kind.LANDED))
        assert (await stream.read())[0] == Kind.LANDED


@needs_nixl
async def test_rows_that_are_not_registered_are_filled_too(ends: Ends) -> None:
    async with asyncio.timeout(WAIT_S):
        stream = await ends.sender.connect(await ends.receiver.listen("127.0.0.1", ends.serve), WAIT_S)
        incoming = await ends.accepted.get()
        frame = ends.stage(1, (8 << 20) + 777)  # more than is read at once
        await stream.write_blocks([frame])
        rows = [bytearray(1000), bytearray(frame.payload.nbytes - 1000)]
        await incoming.land(await incoming.header(), [memoryview(row) for row in rows])
        assert b"".join(rows) == frame.payload


@needs_nixl
async def test_staging_memory_is_allocated_whole_for_who_sends_and_not_for_who_receives(ends: Ends) -> None:
    async with asyncio.timeout(WAIT_S):
        address = await ends.receiver.listen("127.0.0.1", ends.serve)
        assert ends.pool.allocated_bytes == 0
        await ends.sender.connect(address, WAIT_S)
        assert ends.pool.allocated_bytes == ends.pool.size_bytes


@needs_nixl
async def test_a_sender_that_is_gone_ends_the_stream(ends: Ends) -> None:
    async with asyncio.timeout(WAIT_S):
        await ends.sender.connect(await ends.receiver.listen("127.0.0.1", ends.serve), WAIT_S)
        incoming = await ends.accepted.get()
        await ends.sender.close()
        with pytest.raises(TransferAborted):
            await incoming.header()


async def test_without_the_library_listen_names_the_remedy(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with pytest.raises(ConfigError, match="pip install nixl"):
        await ends.receiver.listen("127.0.0.1", ends.serve)


@needs_nixl
async def test_a_receiver_that_reads_nothing_is_told_of_no_more_than_its_credit(ends: Ends) -> None:
    async with asyncio.timeout(WAIT_S):
        stream = await ends.sender.connect(await ends.receiver.listen("127.0.0.1", ends.serve), WAIT_S)
        incoming = await ends.accepted.get()
        frame = ends.stage(1, 1 << 20)
        count = 3 * CREDIT_BYTES // frame.payload.nbytes
        sending = asyncio.create_task(stream.write_blocks([frame] * count))
        await asyncio.wait({sending}, timeout=0.1)
        assert not sending.done()
        assert stream._unread_bytes == CREDIT_BYTES  # type: ignore[attr-defined]
        row = memoryview(bytearray(frame.payload.nbytes))
        for _ in range(count):
            await incoming.land(await incoming.header(), [row])
        await sending


@needs_nixl
async def test_nothing_spins_once_all_was_read(ends: Ends) -> None:
    async with asyncio.timeout(WAIT_S):
        stream = await ends.sender.connect(await ends.receiver.listen("127.0.0.1", ends.serve), WAIT_S)
        incoming = await ends.accepted.get()
        frame = ends.stage(1, BLOCK)
        await stream.write_blocks([frame])
        await incoming.land(await incoming.header(), [memoryview(bytearray(BLOCK))])
        next_header = asyncio.ensure_future(incoming.header())
        await asyncio.wait({next_header}, timeout=0.1)  # the sender hears that all was read
        before_s = time.process_time()  # of all threads
        await asyncio.wait({next_header}, timeout=0.5)
        assert time.process_time() - before_s < 0.25  # the thread of one agent would take all of a core
        next_header.cancel()
