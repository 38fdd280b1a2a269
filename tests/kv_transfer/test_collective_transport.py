"""KV by collectives, under gloo: the code is that of NCCL, which no test here has seen.

Invariants: what lands is what was sent; a stream that ended in order leaves its lane to the next; whatever else ends a
stream ends both of its ends, and the next stream has a new lane.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from core.errors import ConfigError, KVTransferError, TransferAborted, Unauthorized
from kv_transfer.collective_transport import CollectiveTransport
from kv_transfer.frames import Kind, blocks_header, control_frame
from kv_transfer.transport import Incoming, Outgoing, StagedFrame

WAIT_S = 30.0
BLOCK = 4096
Peer = Callable[..., CollectiveTransport]


class Sink:
    """The receiving half of a test: lands what comes in and answers END with LANDED."""

    def __init__(self) -> None:
        self.landed: list[bytes] = []
        self.ended: asyncio.Queue[BaseException] = asyncio.Queue()
        self.may_land = asyncio.Event()
        self.may_land.set()
        self.has_header = asyncio.Event()

    async def __call__(self, incoming: Incoming) -> None:
        try:
            while True:
                header = await incoming.header()
                if header.kind is Kind.BLOCKS:
                    self.has_header.set()
                    await self.may_land.wait()
                    rows = [bytearray(header.size // header.num_blocks) for _ in range(header.num_blocks)]
                    await incoming.land(header, [memoryview(row) for row in rows])
                    self.landed.append(b"".join(rows))
                else:
                    await incoming.payload(header)
                    await incoming.write(control_frame(Kind.LANDED))
        except KVTransferError as exc:
            self.ended.put_nowait(exc)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    made: list[CollectiveTransport] = []

    def make(token: str = "secret", stall_timeout_s: float = WAIT_S) -> CollectiveTransport:
        made.append(CollectiveTransport("gloo", token, stall_timeout_s=stall_timeout_s))
        return made[-1]

    yield make
    async with asyncio.timeout(WAIT_S):
        for transport in made:
            await transport.close()
            await transport.close()


def staged(layer: int, num_blocks: int = 3) -> StagedFrame:
    payload = memoryview(bytearray(os.urandom(num_blocks * BLOCK)))
    return StagedFrame(blocks_header(7, layer, 0, num_blocks, payload), payload, 0)


async def hand_over(stream: Outgoing, frames: list[StagedFrame]) -> None:
    await stream.write_blocks(frames)
    await stream.write(control_frame(Kind.END, count=len(frames)))
    assert (await stream.read())[0] == Kind.LANDED
    stream.close()


async def within(awaitable: Awaitable[object]) -> object:
    async with asyncio.timeout(WAIT_S):
        return await awaitable


async def test_what_lands_is_what_was_sent_and_the_lane_serves_the_next_stream(peer: Peer) -> None:
    sink, sender, receiver = Sink(), peer(), peer()
    address = await receiver.listen("127.0.0.1", sink)
    sent: list[bytes] = []
    for _ in range(3):
        stream = await sender.connect(address, WAIT_S)
        frames = [staged(layer, 1 + layer) for layer in range(4)]
        await within(hand_over(stream, frames))
        await within(sink.ended.get())
        await within(asyncio.gather(*sender._resting))
        sent += [bytes(frame.payload) for frame in frames]
    assert sink.landed == sent
    assert len(sender._lanes) == len(receiver._lanes) == 1


async def test_two_peers_send_at_once(peer: Peer) -> None:
    sink, receiver = Sink(), peer()
    address = await receiver.listen("127.0.0.1", sink)
    frames = [[staged(layer) for layer in range(6)] for _ in range(2)]
    streams = [await peer().connect(address, WAIT_S) for _ in frames]
    await within(asyncio.gather(*map(hand_over, streams, frames)))
    assert sorted(sink.landed) == sorted(bytes(frame.payload) for each in frames for frame in each)


async def test_a_sender_that_dies_in_a_payload_ends_the_stream_and_a_new_lane_is_made(peer: Peer) -> None:
    sink, sender, receiver = Sink(), peer(), peer()
    address = await receiver.listen("127.0.0.1", sink)
    sink.may_land.clear()
    stream = await sender.connect(address, WAIT_S)
    frame = staged(0, 2048)  # more than the sockets between hold, so that it waits in the group
    writing = asyncio.create_task(stream.write_blocks([frame]))
    await within(sink.has_header.wait())
    stream.close()
    with pytest.raises(TransferAborted):
        await within(writing)
    sink.may_land.set()
    assert isinstance(await within(sink.ended.get()), TransferAborted)
    again = staged(1)
    await within(hand_over(await sender.connect(address, WAIT_S), [again]))
    assert sink.landed == [bytes(again.payload)]


async def test_a_receiver_that_dies_in_a_payload_ends_the_stream(peer: Peer) -> None:
    sink, receiver = Sink(), peer()
    address = await receiver.listen("127.0.0.1", sink)
    sink.may_land.clear()
    stream = await peer().connect(address, WAIT_S)
    writing = asyncio.create_task(stream.write_blocks([staged(0, 2048)]))
    await within(sink.has_header.wait())
    await within(receiver.close())
    with pytest.raises(TransferAborted):
        await within(writing)
    with pytest.raises(TransferAborted):
        await within(stream.read())


async def test_a_payload_that_nobody_takes_runs_into_its_time_out_and_the_group_is_made_anew(peer: Peer) -> None:
    sink, sender = Sink(), peer(stall_timeout_s=1.0)
    address = await peer().listen("127.0.0.1", sink)
    sink.may_land.clear()
    stream = await sender.connect(address, WAIT_S)
    with pytest.raises(TransferAborted):
        await within(stream.write_blocks([staged(0, 8192)]))
    stream.close()
    sink.may_land.set()
    await within(sink.ended.get())
    again = staged(1)
    await within(hand_over(await sender.connect(address, WAIT_S), [again]))
    assert sink.landed == [bytes(again.payload)]


async def test_close_ends_a_read_at_once_and_leaves_no_lane(peer: Peer) -> None:
    sink, sender = Sink(), peer()
    stream = await sender.connect(await peer().listen("127.0.0.1", sink), WAIT_S)
    reading = asyncio.create_task(stream.read())
    await asyncio.wait((reading,), timeout=0)  # it waits for the peer
    await within(sender.close())
    with pytest.raises(TransferAborted):
        await within(reading)
    with pytest.raises(TransferAborted):
        await within(stream.write_blocks([staged(0)]))
    await within(sink.ended.get())


async def test_a_stranger_gets_no_lane(peer: Peer) -> None:
    address = await peer().listen("127.0.0.1", Sink())
    with pytest.raises(Unauthorized):
        await peer(token="other").connect(address, WAIT_S)


async def test_nccl_without_a_gpu_is_refused_with_a_remedy() -> None:
    transport = CollectiveTransport("nccl", "secret", device="cuda:0")
    with pytest.raises(ConfigError, match=r"built without NCCL; set kv.transport to auto"):
        await transport.listen("127.0.0.1", Sink())
    await transport.close()
