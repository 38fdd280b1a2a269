"""What every transport does, whatever it is made of.

Invariants: payloads arrive as they were sent, however they are cut into rows and batched into writes; frames arrive in
order; whoever waits is woken when the peer dies or its own end closes; after `close` no task, no descriptor and no
warning is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import CorruptFrame, KVTransferError, TransferAborted, TransferTimeout, Unauthorized
from kv_transfer.frames import Kind, control_frame
from kv_transfer.transport import Incoming, Outgoing
from tests.kv_transfer.contract.transports import (
    CASES,
    TRANSPORTS,
    WAIT_S,
    Case,
    Ends,
    count_descriptors,
    ends,
    peer_process,
    stage,
    take_blocks,
)

PAGE_BYTES = 4096


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str) -> Case:
    return TRANSPORTS[name]


# Bytes


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_batch_lands_in_any_rows(name: str, data: st.DataObject) -> None:
    small, large = st.integers(1, 5000), st.integers(1 << 20, 3 << 20)
    batches = data.draw(st.lists(st.lists(small | large, min_size=1, max_size=4), min_size=1, max_size=3))
    cuts = data.draw(st.lists(st.integers(0, 3 << 20), max_size=40))
    rng = random.Random(data.draw(st.integers(0, 1 << 32)))
    payloads = [[rng.randbytes(size) for size in batch] for batch in batches]

    async def transfer() -> None:
        async with ends(TRANSPORTS[name], staging_bytes=64 << 20) as both:
            outgoing, incoming = await both.open()
            sending = asyncio.create_task(_send_batches(both, outgoing, payloads))
            for payload in (payload for batch in payloads for payload in batch):
                assert await take_blocks(incoming, cuts) == payload
            await sending

    asyncio.run(transfer())


async def _send_batches(both: Ends, outgoing: Outgoing, payloads: list[list[bytes]]) -> None:
    for batch in payloads:
        await outgoing.write_blocks([stage(both.pool, payload) for payload in batch])


async def test_payload_of_64_mib_lands(case: Case) -> None:
    payload = random.Random(1).randbytes(64 << 20)
    async with ends(case, staging_bytes=64 << 20) as both:
        outgoing, incoming = await both.open()
        sending = asyncio.create_task(outgoing.write_blocks([stage(both.pool, payload)]))
        landed = await take_blocks(incoming, range(0, 64 << 20, 64 << 10))
        await sending
        assert landed == payload


async def test_control_frames_keep_their_place_among_blocks(case: Case) -> None:
    async with ends(case) as both:
        outgoing, incoming = await both.open()
        count = 50

        async def send() -> None:
            for index in range(count):
                await outgoing.write_blocks([stage(both.pool, bytes([index]) * PAGE_BYTES)])
                await outgoing.write(control_frame(Kind.OFFER, b"x" * index, count=index))

        async def answer() -> None:
            for index in range(count):
                assert await take_blocks(incoming) == bytes([index]) * PAGE_BYTES
                header = await incoming.header()
                assert (header.kind, header.num_blocks) == (Kind.OFFER, index)
                assert await incoming.payload(header) == b"x" * index
                await incoming.write(control_frame(Kind.GRANT, b"y" * index, count=index))

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            group.create_task(answer())
            for index in range(count):
                assert await outgoing.read() == control_frame(Kind.GRANT, b"y" * index, count=index)


async def test_two_streams_at_once_do_not_mix(case: Case) -> None:
    async with ends(case, staging_bytes=32 << 20) as both:
        pairs = [await both.open() for _ in range(2)]
        payloads = [[random.Random(10 * i + j).randbytes(2 << 20) for j in range(4)] for i in range(2)]

        async def land(incoming: Incoming, expected: list[bytes]) -> None:
            assert [await take_blocks(incoming) for _ in expected] == expected

        async with asyncio.TaskGroup() as group:
            for (outgoing, incoming), expected in zip(pairs, payloads, strict=True):
                group.create_task(_send_batches(both, outgoing, [expected]))
                group.create_task(land(incoming, expected))


async def test_answer_given_before_all_was_sent_is_read(case: Case) -> None:
    failed = control_frame(Kind.FAILED, b"no room")
    async with ends(case, staging_bytes=8 << 20) as both:
        outgoing, incoming = await both.open()
        await outgoing.write(control_frame(Kind.OFFER))
        await incoming.payload(await incoming.header())
        await incoming.write(failed)
        incoming.close()
        with contextlib.suppress(TransferAborted):
            await outgoing.write_blocks([stage(both.pool, bytes(8 << 20))])
        assert await outgoing.read() == failed


async def test_impossible_size_is_refused_by_its_header(case: Case) -> None:
    async with ends(case) as both:
        outgoing, incoming = await both.open()
        header = bytearray(stage(both.pool, b"x" * PAGE_BYTES).header)
        position = bytes(header).index(struct.pack("<Q", PAGE_BYTES))
        header[position : position + 8] = struct.pack("<Q", 1 << 62)
        await outgoing.write(bytes(header))
        with pytest.raises(CorruptFrame):
            await incoming.header()


# Who may


async def test_wrong_token_is_unauthorized_and_consumes_nothing(case: Case) -> None:
    async with ends(case, token="guess") as both:
        with pytest.raises(Unauthorized):
            await both.connecting.connect(both.address, WAIT_S)
        assert both.accepted.empty()


async def test_garbage_instead_of_a_greeting_is_dropped(case: Case) -> None:
    async with ends(case) as both:
        with await asyncio.to_thread(case.dial, both.address) as stranger:
            await asyncio.to_thread(_say_garbage, stranger)
        assert both.accepted.empty()
        outgoing, incoming = await both.open()
        await outgoing.write(control_frame(Kind.OFFER))
        assert (await incoming.header()).kind is Kind.OFFER


def _say_garbage(stranger: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(4096))
        while stranger.recv(4096):
            pass


# Peers that are gone


async def test_nobody_listening_is_aborted(case: Case) -> None:
    async with ends(case) as both:
        await both.listening.close()
        with pytest.raises(TransferAborted):
            await both.connecting.connect(both.address, WAIT_S)


async def test_peer_that_never_answers_is_a_timeout(case: Case, name: str) -> None:
    async with ends(case) as both, peer_process(name) as process:
        address = await _line(process)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(TransferTimeout):
            await both.connecting.connect(address, 0.3)


@pytest.mark.parametrize("waits_to", ["read", "write_blocks"])
async def test_death_of_the_receiver_is_noticed(case: Case, name: str, waits_to: str) -> None:
    async with ends(case, staging_bytes=4 << 20) as both, peer_process(name) as process:
        outgoing = await both.connecting.connect(await _line(process), WAIT_S)
        await outgoing.write(control_frame(Kind.OFFER))
        assert await outgoing.read() == control_frame(Kind.GRANT)
        frames = [stage(both.pool, bytes(2 << 20))] * 128
        waiting = asyncio.create_task(outgoing.read() if waits_to == "read" else outgoing.write_blocks(frames))
        await asyncio.wait({waiting}, timeout=0.2)
        process.kill()
        with pytest.raises(TransferAborted):
            await asyncio.wait_for(waiting, WAIT_S)


async def test_death_of_the_sender_is_noticed(case: Case, name: str) -> None:
    async with ends(case) as both, peer_process(name, both.address) as process:
        await _line(process)
        incoming = await both.accepted.get()
        await incoming.payload(await incoming.header())
        waiting = asyncio.create_task(incoming.header())
        process.kill()
        with pytest.raises(TransferAborted):
            await asyncio.wait_for(waiting, WAIT_S)
        incoming.close()


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


# Closing


async def test_peer_that_reads_nothing_holds_the_sender_until_it_closes(case: Case) -> None:
    async with ends(case, staging_bytes=4 << 20) as both:
        outgoing, _ = await both.open()
        before = _resident_bytes()
        sending = asyncio.create_task(outgoing.write_blocks([stage(both.pool, bytes(2 << 20))] * 128))
        await asyncio.wait({sending}, timeout=0.5)
        assert not sending.done()
        assert _resident_bytes() - before < 64 << 20
        outgoing.close()
        with pytest.raises(TransferAborted):
            await asyncio.wait_for(sending, WAIT_S)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@pytest.mark.parametrize("closed_by", ["outgoing", "incoming", "connecting", "listening"])
async def test_closing_wakes_both_ends(case: Case, closed_by: str) -> None:
    async with ends(case) as both:
        outgoing, incoming = await both.open()
        waiting = [asyncio.create_task(outgoing.read()), asyncio.create_task(incoming.header())]
        await asyncio.wait(waiting, timeout=0.05)
        streams = {"outgoing": outgoing, "incoming": incoming}
        for _ in range(2):  # the second time changes nothing
            if closed_by in streams:
                streams[closed_by].close()
            else:
                await getattr(both, closed_by).close()
        for task in waiting[:1] if closed_by == "outgoing" else waiting:
            with pytest.raises(TransferAborted):
                await asyncio.wait_for(task, WAIT_S)
        if closed_by == "outgoing":
            with pytest.raises(TransferAborted):
                await asyncio.wait_for(waiting[1], WAIT_S)


async def test_closed_stream_and_transport_say_so(case: Case) -> None:
    async with ends(case) as both:
        outgoing, _ = await both.open()
        outgoing.close()
        with pytest.raises(TransferAborted):
            await outgoing.read()
        with pytest.raises(TransferAborted):
            await outgoing.write(control_frame(Kind.END))
        await both.connecting.close()
        with pytest.raises(KVTransferError):
            await both.connecting.connect(both.address, WAIT_S)


async def test_streams_one_after_another_do_not_pile_up(case: Case) -> None:
    async with ends(case) as both:
        for index in range(200):
            outgoing, incoming = await both.open()
            await outgoing.write(control_frame(Kind.OFFER, count=index))
            header = await incoming.header()
            assert header.num_blocks == index
            await incoming.payload(header)
            await incoming.write(control_frame(Kind.LANDED, count=index))
            incoming.close()
            assert await outgoing.read() == control_frame(Kind.LANDED, count=index)
            outgoing.close()
            if index == 20:
                num_descriptors = count_descriptors()
        assert count_descriptors() <= num_descriptors + 40  # far below one for each stream


# Cancellation

Operation = Callable[[Ends, Outgoing, Incoming], Awaitable[object]]
OPERATIONS: dict[str, Operation] = {
    "connect": lambda both, outgoing, incoming: both.connecting.connect(both.address, WAIT_S),
    "read": lambda both, outgoing, incoming: outgoing.read(),
    "header": lambda both, outgoing, incoming: incoming.header(),
    "write": lambda both, outgoing, incoming: outgoing.write(control_frame(Kind.OFFER)),
    "write_blocks": lambda both, outgoing, incoming: outgoing.write_blocks([stage(both.pool, bytes(2 << 20))] * 64),
    "land": lambda both, outgoing, incoming: _land_half_sent(both, outgoing, incoming),
}


async def _land_half_sent(both: Ends, outgoing: Outgoing, incoming: Incoming) -> None:
    """Wait for a payload of which the sender has sent a header and nothing more."""
    await outgoing.write(stage(both.pool, bytes(2 << 20)).header)
    await take_blocks(incoming)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cancelled_operation_leaves_nothing(case: Case, operation: str) -> None:
    for num_turns in (0, 1, 2, 3, 5, 8, 13, 21):
        async with ends(case, staging_bytes=16 << 20) as both:
            outgoing, incoming = await both.open()
            task = asyncio.ensure_future(OPERATIONS[operation](both, outgoing, incoming))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, WAIT_S)
            outgoing.close()
            incoming.close()
            again = await both.connecting.connect(both.address, WAIT_S)
            again.close()
