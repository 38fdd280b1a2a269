"""Hand-overs whose streams break.

Invariants, wherever a stream breaks: a hand-over ends once; if it landed, the bytes are those of the sender, and each
frame was counted once; staging is empty and both ledgers are balanced and empty at the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transfer.block_io import BlockIO
from kv_transfer.frames import Header, Kind, Offer, blocks_header, offer_frame, read_control, transfer_seed
from kv_transfer.ledger import LeaseLedger
from kv_transfer.plan import ReceiveOpen, ReceiveParams
from kv_transfer.receiver import Receiver
from kv_transfer.sender import Sender
from kv_transfer.staging import StagingPool
from tests.support.kv_side import BLOCKS, LAYERS, SHAPE, WAIT_S
from tests.support.pipe import Pipe, PipeWays

SOURCE, TARGET = [5, 1, 9, 10, 11], [2, 0, 7, 8, 4]
FRAMES = 2 * LAYERS  # two chunks of a prompt


class World:
    """A sender and a receiver with their caches, on the running loop."""

    def __init__(self, pipes: list[Pipe], *, ack_bytes: int = 1) -> None:
        self.caches = [
            {f"layer.{i}": torch.randint(0, 255, (BLOCKS, *SHAPE), dtype=torch.uint8) for i in range(LAYERS)}
            for _ in range(2)
        ]
        self.io, target = BlockIO(self.caches[0]), BlockIO(self.caches[1])
        self.ledgers = [LeaseLedger(time.monotonic) for _ in range(2)]
        self.receiver = Receiver(target, fingerprint="fp", ledger=self.ledgers[1], wait_s=WAIT_S, ack_bytes=ack_bytes)
        self.ways = PipeWays(self.receiver, pipes)
        self.pool = StagingPool(1 << 20)
        loop = asyncio.get_running_loop()
        self.sender = Sender(loop, self.ways, self.ways.withdraw, ledger=self.ledgers[0], pool=self.pool)

    def offer(self) -> None:
        offer = Offer("t", "p", 1, "fp", "d", len(SOURCE), LAYERS, self.io.block_bytes)
        self.sender.open(offer, request_id="r", peer="d", lease_s=WAIT_S)

    def expect(self) -> None:
        self.receiver.expect(ReceiveOpen(ReceiveParams("t", WAIT_S), "r", "d", 0, len(TARGET), tuple(TARGET)))

    def put(self, chunk: int) -> None:
        first, ids = ((0, SOURCE[:2]), (2, SOURCE[2:]))[chunk]
        for layer in range(LAYERS):
            segment = self.sender.take("t", len(ids) * self.io.block_bytes)
            if segment is not None:
                self.io.gather_into(layer, ids, segment.view)
                header = blocks_header(transfer_seed("t"), layer, first, len(ids), segment.view)
                self.sender.put("t", segment, layer=layer, first_block=first, num_blocks=len(ids), header=header)

    async def finish(self) -> set[int]:
        """Wait for the end of all that runs; return the blocks to compute."""
        async with asyncio.timeout(WAIT_S):
            while self.sender._tasks:
                await asyncio.gather(*self.sender._tasks)
            await asyncio.gather(*self.ways.served)
            await asyncio.to_thread(self.receiver.wait_results, WAIT_S)
        results = self.receiver.take_results()
        assert results.finished == {"r"}
        assert self.pool.used_bytes == 0
        for ledger in self.ledgers:
            assert (ledger.imbalances, ledger.open_leases, ledger.blocks().imbalance) == (0, (), 0)
        assert not self.receiver._graces
        return results.bad_blocks

    def landed_whole(self) -> bool:
        return all(torch.equal(self.caches[0][name][SOURCE], cache[TARGET]) for name, cache in self.caches[1].items())


async def hand_over(pipes: list[Pipe], *, ack_bytes: int = 1, late: bool = False) -> tuple[World, set[int]]:
    world = World(pipes, ack_bytes=ack_bytes)
    if not late:
        world.expect()
    world.offer()
    world.put(0)
    await asyncio.sleep(0)
    if late:
        world.expect()
    world.put(1)
    world.sender.finish("t")
    return world, await world.finish()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, FRAMES + 1), max_size=2),
    st.sampled_from([1, 300, 1 << 20]),
    st.booleans(),
)
def test_broken_streams_are_gone_on_with(breaks: list[int], ack_bytes: int, late: bool) -> None:
    async def check() -> None:
        pipes = [*(Pipe(count) for count in breaks), Pipe(None)]
        world, bad = await hand_over(pipes, ack_bytes=ack_bytes, late=late)
        assert bad == set()
        assert world.landed_whole()
        assert world.receiver.counts == {"landed": 1, "failed": 0, "cancelled": 0}
        assert world.sender.counts == {"sent": 1, "declined": 0, "failed": 0}
        assert world.receiver.bytes_landed == LAYERS * len(SOURCE) * world.io.block_bytes  # each frame once
        *broken, last = world.ways.log  # a stream with less left to send may come to no break
        assert broken == [("failed", f"way-{i}") for i in range(len(broken))]
        assert last == ("done", f"way-{len(broken)}")

    asyncio.run(check())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, FRAMES + 1))
def test_answers_that_are_lost_are_asked_for_again(answers: int) -> None:
    async def check() -> None:
        world, bad = await hand_over([Pipe(None, answers_to_break=answers), Pipe(None)])
        assert bad == set()
        assert world.landed_whole()
        assert world.sender.counts["sent"] == 1
        assert world.receiver.bytes_landed == LAYERS * len(SOURCE) * world.io.block_bytes

    asyncio.run(check())


async def test_after_the_last_way_broke_the_engine_recomputes_at_once() -> None:
    world, bad = await hand_over([Pipe(2), Pipe(2), Pipe(2)])
    assert world.ways.withdrawn == ["t"]
    assert bad
    assert bad <= set(TARGET)
    assert world.sender.counts == {"sent": 0, "declined": 0, "failed": 1}


async def test_without_another_stream_the_grace_ends_and_the_engine_recomputes() -> None:
    world = World([Pipe(FRAMES)], ack_bytes=1 << 20)
    world.expect()
    world.ways.silent = True
    world.offer()
    world.put(0)
    world.put(1)
    world.sender.finish("t")
    assert await world.finish() == set(TARGET[2:])
    assert world.receiver.counts["failed"] == 1


@pytest.mark.parametrize("ends", ["cancel", "expire", "takeover"])
async def test_blocks_are_reported_only_when_nothing_writes_there_any_more(ends: str) -> None:
    pipe = Pipe(None)
    world = World([pipe])
    world.expect()
    world.ways.silent = True
    began, go_on = asyncio.Event(), asyncio.Event()
    land = pipe.far.land

    async def slow(header: Header, rows: Sequence[memoryview]) -> None:
        began.set()
        await go_on.wait()
        await land(header, rows)

    pipe.far.land = slow  # type: ignore[method-assign]
    world.offer()
    world.put(0)
    async with asyncio.timeout(WAIT_S):
        await began.wait()
    later = Pipe(None)
    if ends == "cancel":
        world.receiver.cancel("t")
    elif ends == "expire":
        world.receiver._expire("t")
    else:
        world.ways.served.append(asyncio.ensure_future(world.receiver.serve(later.far)))
        offer = Offer("t", "p", 1, "fp", "d", len(SOURCE), LAYERS, world.io.block_bytes, attempt=1)
        await later.write(offer_frame(offer))
        for _ in range(20):
            await asyncio.sleep(0)
        assert later.back.empty()  # not granted
    assert world.receiver.take_results().finished == set()
    assert world.ledgers[1].blocks().held == len(TARGET)
    go_on.set()
    if ends == "takeover":
        async with asyncio.timeout(WAIT_S):
            granted, _ = read_control(await later.read())
        assert granted.kind is Kind.GRANT
        later.close()
    world.sender.abort("t", "client gone")
    await world.finish()
