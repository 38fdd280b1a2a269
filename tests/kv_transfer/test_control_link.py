"""Links: messages arrive whole and in order; strangers and liars are sent away; a death is noticed by both ends."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest

from core.errors import TransferAborted, TransferTimeout, Unauthorized
from kv_transfer.control_link import Link, Listener, dial

WAIT_S = 30.0


class Served:
    """A listener whose links wait to be taken by the test."""

    def __init__(self) -> None:
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.listener = Listener("secret", self._serve)

    async def _serve(self, link: Link) -> None:
        self.links.put_nowait(link)
        await link.lost.wait()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made = Served()
    yield made
    async with asyncio.timeout(WAIT_S):
        await made.listener.close()
        await made.listener.close()


async def test_messages_arrive_whole_and_in_order(served: Served) -> None:
    link = await dial(await served.listener.start("127.0.0.1"), "secret", WAIT_S)
    sent = [(tag, bytes([tag]) * (tag * 997)) for tag in range(200)]  # more than an end reads ahead

    async def send() -> None:
        for tag, data in sent:
            await link.send(tag, data)

    sending = asyncio.create_task(send())
    async with asyncio.timeout(WAIT_S):
        other = await served.links.get()
        assert [await other.receive() for _ in sent] == sent
        await sending
    link.close()


async def test_either_end_notices_that_the_other_is_gone(served: Served) -> None:
    address = await served.listener.start("127.0.0.1")
    for ends_first in (True, False):
        link = await dial(address, "secret", WAIT_S)
        other = await served.links.get()
        leaving, staying = (link, other) if ends_first else (other, link)
        leaving.close()
        leaving.close()
        async with asyncio.timeout(WAIT_S):
            await staying.lost.wait()
            for _ in range(2):
                with pytest.raises(TransferAborted):
                    await staying.receive()
        with pytest.raises(TransferAborted):
            await staying.send(1)
        link.close()


async def test_a_wrong_token_is_unauthorized(served: Served) -> None:
    with pytest.raises(Unauthorized):
        await dial(await served.listener.start("127.0.0.1"), "other", WAIT_S)
    assert served.links.empty()


async def test_a_message_that_claims_too_much_ends_the_link(served: Served) -> None:
    link = await dial(await served.listener.start("127.0.0.1"), "secret", WAIT_S)
    link._writer.write(struct.pack("<BI", 1, 1 << 30))
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(TransferAborted):
            await (await served.links.get()).receive()
        await link.lost.wait()


async def test_a_peer_that_says_nothing_is_a_time_out_and_none_at_all_is_a_refusal() -> None:
    left = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        left.set()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    address = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    with pytest.raises(TransferTimeout):
        await dial(address, "secret", 0.05)
    async with asyncio.timeout(WAIT_S):
        await left.wait()
    silent.close()
    await silent.wait_closed()
    with pytest.raises(TransferAborted):
        await dial(address, "secret", WAIT_S)
