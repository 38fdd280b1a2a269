"""What TCP does beyond the contract: links that last, strangers that are few and leave, streams that are cut."""

from __future__ import annotations

import asyncio
import socket

import pytest

from core.errors import TransferAborted
from kv_transfer import tcp_transport
from kv_transfer.frames import Kind, control_frame
from tests.kv_transfer.contract.transports import TRANSPORTS, WAIT_S, Ends, count_descriptors, ends, stage


async def _hand_over(both: Ends) -> None:
    outgoing, incoming = await both.open()
    await outgoing.write(control_frame(Kind.OFFER))
    await incoming.payload(await incoming.header())
    incoming.close()
    with pytest.raises(TransferAborted):
        await outgoing.read()
    outgoing.close()


async def test_stream_runs_on_the_link_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_transport, "_SETTLE_WAIT_S", WAIT_S)
    async with ends(TRANSPORTS["tcp"]) as both:
        await _hand_over(both)
        num_descriptors = count_descriptors()
        for _ in range(20):
            await _hand_over(both)
        assert count_descriptors() == num_descriptors


async def test_idle_link_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_transport, "_IDLE_S", 0.01)
    async with ends(TRANSPORTS["tcp"]) as both:
        num_descriptors = count_descriptors()
        await _hand_over(both)
        for _ in range(int(WAIT_S / 0.005)):
            if count_descriptors() == num_descriptors:
                break
            await asyncio.sleep(0.005)
        assert count_descriptors() == num_descriptors


async def test_link_to_a_peer_that_left_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_transport, "_SETTLE_WAIT_S", WAIT_S)
    async with ends(TRANSPORTS["tcp"]) as both:
        await _hand_over(both)
        await both.listening.close()
        with pytest.raises(TransferAborted, match="cannot connect"):
            await both.connecting.connect(both.address, WAIT_S)


async def test_silent_strangers_are_few_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_transport, "MAX_STRANGERS", 2)
    monkeypatch.setattr(tcp_transport, "HANDSHAKE_TIMEOUT_S", 2.0)
    async with ends(TRANSPORTS["tcp"]) as both:
        dial = TRANSPORTS["tcp"].dial
        strangers = [await asyncio.to_thread(dial, both.address) for _ in range(3)]
        try:
            heard = [await asyncio.to_thread(_hear_all, stranger) for stranger in strangers]
        finally:
            for stranger in strangers:
                stranger.close()
        assert sorted(bool(text) for text in heard) == [False, True, True]
        await _hand_over(both)


def _hear_all(stranger: socket.socket) -> bytes:
    """Read until the listener hangs up, within the time-out of the socket."""
    text = b""
    while data := stranger.recv(4096):
        text += data
    return text


async def test_nothing_follows_a_frame_that_was_broken_off() -> None:
    async with ends(TRANSPORTS["tcp"]) as both:
        outgoing, _ = await both.open()
        sending = asyncio.create_task(outgoing.write_blocks([stage(both.pool, bytes(2 << 20))] * 128))
        await asyncio.wait({sending}, timeout=0.1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        with pytest.raises(TransferAborted, match="broken off"):
            await outgoing.write(control_frame(Kind.END))
