"""Peers that break the rules of a hand-over: each is turned away in bounded time, and nobody else suffers."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest

from core.cluster_token import token_metadata
from kv_transfer.frames import Kind, Problem, control_frame, problem_frame
from kv_transfer.grpc_transport import SERVICE
from kv_transfer.plan import ReceiveOpen, ReceiveParams
from tests.support.kv_peer import answer, layer_frame, offer, push, reply
from tests.support.kv_side import LAYERS, WAIT_S, MakeSide, wait_until


async def test_hand_over_without_one_layer_never_lands(make_side: MakeSide) -> None:
    decode = make_side()
    decode.expect("t", [2, 0])
    async with push(decode) as call:
        await call.write(offer(decode, "t", 2))
        assert await answer(call) == (Kind.GRANT, "")
        for layer in range(1, LAYERS):
            await call.write(layer_frame(decode, "t", layer, [5, 1]))
            assert await reply(call) == (Kind.ACK, layer)
        await call.write(control_frame(Kind.END, count=LAYERS - 1))
        assert await answer(call) == (Kind.FAILED, "kv_corrupt_frame")
    await asyncio.to_thread(decode.wait_finished, "t")
    assert decode.bad == {2, 0}


async def test_frame_that_comes_again_ends_the_hand_over(make_side: MakeSide) -> None:
    decode = make_side()
    decode.expect("t", [2])
    async with push(decode) as call:
        await call.write(offer(decode, "t", 1))
        assert await answer(call) == (Kind.GRANT, "")
        for _ in range(2):
            await call.write(layer_frame(decode, "t", 0, [5]))
        assert await answer(call) == (Kind.ACK, "")
        assert await answer(call) == (Kind.FAILED, "kv_corrupt_frame")
    await asyncio.to_thread(decode.wait_finished, "t")


async def test_stream_that_says_nothing_is_ended(make_side: MakeSide) -> None:
    decode = make_side(lease_s=0.2)
    async with push(decode) as silent:
        assert await answer(silent) == (Kind.REFUSED, "kv_transfer_timeout")
        assert await silent.read() is grpc.aio.EOF


async def test_stream_that_ends_before_its_offer(make_side: MakeSide) -> None:
    decode = make_side()
    async with push(decode) as empty:
        await empty.done_writing()
        assert await answer(empty) == (Kind.REFUSED, "kv_transfer_aborted")
        assert await empty.read() is grpc.aio.EOF


@pytest.mark.parametrize("message", [b"", b"\0", b"garbage" * 100, b"\xff" * (1 << 20)], ids=len)
async def test_garbage_is_refused(make_side: MakeSide, message: bytes) -> None:
    decode = make_side()
    async with push(decode) as call:
        await call.write(message)
        assert await answer(call) == (Kind.REFUSED, "kv_corrupt_frame")


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"null", b"{}", b"[" * 100_000, b'{"transfer_id": 1}'],
    ids=["empty", "list", "null", "object", "deep", "int"],
)
async def test_malformed_offer_is_refused(make_side: MakeSide, payload: bytes) -> None:
    decode = make_side()
    async with push(decode) as call:
        await call.write(control_frame(Kind.OFFER, payload))
        assert await answer(call) == (Kind.REFUSED, "kv_corrupt_frame")


@pytest.mark.parametrize("num_blocks", [1 << 62, -1, 0])
async def test_offer_of_an_absurd_size_allocates_nothing(make_side: MakeSide, num_blocks: int) -> None:
    decode = make_side()
    decode.expect("t", [2])
    async with push(decode) as call:
        await call.write(offer(decode, "t", num_blocks))
        assert await answer(call) == (Kind.REFUSED, "kv_peer_mismatch")
    await asyncio.to_thread(decode.wait_finished, "t")


async def test_transfer_id_of_an_absurd_length_is_refused(make_side: MakeSide) -> None:
    decode = make_side()
    async with push(decode) as call:
        await call.write(offer(decode, "t" * 100_000, 1))
        assert await answer(call) == (Kind.REFUSED, "kv_corrupt_frame")
    assert not decode.endpoint.receiver._memory._dead


async def test_sender_that_falls_silent_hears_of_the_end_of_the_lease(make_side: MakeSide) -> None:
    decode = make_side()
    decode.expect("t", [2], lease_s=0.3)
    async with push(decode) as call:
        await call.write(offer(decode, "t", 1))
        assert await answer(call) == (Kind.GRANT, "")
        assert await answer(call) == (Kind.FAILED, "kv_expired")
        assert await call.read() is grpc.aio.EOF
    await asyncio.to_thread(decode.wait_finished, "t")
    assert decode.bad == {2}


async def test_sender_hears_at_once_that_the_request_is_gone(make_side: MakeSide) -> None:
    decode = make_side()
    decode.expect("t", [2], lease_s=60)
    async with push(decode) as call:
        await call.write(offer(decode, "t", 1))
        assert await answer(call) == (Kind.GRANT, "")
        decode.endpoint.cancel_receive("t")
        assert (await answer(call))[0] is Kind.FAILED
    await asyncio.to_thread(decode.wait_finished, "t")
    assert decode.bad == set()


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "waiting"])
async def test_second_stream_of_a_hand_over_does_not_disturb_the_first(make_side: MakeSide, registered: bool) -> None:
    decode = make_side()
    async with push(decode) as first, push(decode) as second:
        await first.write(offer(decode, "t", 1))
        await asyncio.to_thread(wait_until, lambda: "t" in decode.endpoint.receiver._waiting)
        if registered:
            decode.expect("t", [2], lease_s=60)
            assert await answer(first) == (Kind.GRANT, "")
        await second.write(offer(decode, "t", 1))
        assert await answer(second) == (Kind.REFUSED, "kv_transfer_aborted")
        if not registered:
            decode.expect("t", [2], lease_s=60)
            assert await answer(first) == (Kind.GRANT, "")
        for layer in range(LAYERS):
            await first.write(layer_frame(decode, "t", layer, [5]))
            assert await reply(first) == (Kind.ACK, layer + 1)
        await first.write(control_frame(Kind.END, count=LAYERS))
        assert await answer(first) == (Kind.LANDED, "")
    await asyncio.to_thread(decode.wait_finished, "t")
    assert decode.bad == set()


async def test_a_thousand_offers_nobody_takes_all_end(make_side: MakeSide) -> None:
    decode = make_side(lease_s=1.0)
    async with grpc.aio.insecure_channel(decode.address) as channel, asyncio.timeout(3 * WAIT_S):
        # A stream is refused too when its offer is a second late, as they are when a busy machine opens all at once.
        opening = asyncio.Semaphore(20)

        async def one(i: int) -> tuple[Kind, str]:
            async with opening:
                call = channel.stream_stream(f"/{SERVICE}/Push")(metadata=token_metadata("secret"))
                await call.write(offer(decode, f"t{i}", 1))
            return await answer(call)

        answers = await asyncio.gather(*(one(i) for i in range(1000)))
    assert set(answers) == {(Kind.REFUSED, "kv_transfer_timeout")}
    assert not decode.endpoint.receiver._waiting


def test_hand_over_registered_twice_is_computed_by_the_second_request(make_side: MakeSide) -> None:
    prefill, decode = make_side(seed=1), make_side(seed=2)
    decode.expect("t", [2, 0])
    again = ReceiveOpen(ReceiveParams("t", 5.0), "req-again", "d", 0, 2, (7, 8))
    decode.endpoint.expect(again)
    wait_until(lambda: (decode.poll(), "req-again" in decode.finished)[1])
    assert decode.bad == {7, 8}
    prefill.offer(decode.address, "t", 2)
    prefill.send_all("t", [5, 1])
    decode.wait_finished("t")
    assert decode.bad == {7, 8}


async def test_later_attempt_takes_over_from_a_stream_that_is_still_open(make_side: MakeSide) -> None:
    decode = make_side()
    decode.expect("t", [2], lease_s=60)
    async with push(decode) as first, push(decode) as second, push(decode) as third:
        await first.write(offer(decode, "t", 1))
        assert await reply(first) == (Kind.GRANT, 0)
        await first.write(layer_frame(decode, "t", 0, [5]))
        assert await reply(first) == (Kind.ACK, 1)
        await second.write(offer(decode, "t", 1, attempt=1))
        assert await reply(second) == (Kind.GRANT, 1)  # goes on after what has landed
        assert await first.read() is grpc.aio.EOF
        await third.write(offer(decode, "t", 1, attempt=1))  # no later than the one that is open
        assert await answer(third) == (Kind.REFUSED, "kv_transfer_aborted")
        for layer in range(1, LAYERS):
            await second.write(layer_frame(decode, "t", layer, [5]))
            assert await reply(second) == (Kind.ACK, layer + 1)
        await second.write(control_frame(Kind.END, count=LAYERS))
        assert await answer(second) == (Kind.LANDED, "")
    await asyncio.to_thread(decode.wait_finished, "t")
    assert decode.bad == set()


@pytest.mark.parametrize(("worker", "epoch"), [("q", 1), ("p", 2)], ids=["worker", "epoch"])
async def test_another_sender_never_takes_over(make_side: MakeSide, worker: str, epoch: int) -> None:
    decode = make_side()
    decode.expect("t", [2], lease_s=60)
    async with push(decode) as first, push(decode) as second:
        await first.write(offer(decode, "t", 1))
        assert await reply(first) == (Kind.GRANT, 0)
        await second.write(offer(decode, "t", 1, attempt=1, worker=worker, epoch=epoch))
        assert await answer(second) == (Kind.REFUSED, "kv_transfer_aborted")
        await first.write(layer_frame(decode, "t", 0, [5]))
        assert await reply(first) == (Kind.ACK, 1)  # undisturbed
    decode.endpoint.cancel_receive("t")
    await asyncio.to_thread(decode.wait_finished, "t")


async def test_older_process_of_a_worker_is_refused_and_disturbs_nothing(make_side: MakeSide) -> None:
    decode = make_side()
    decode.expect("t", [2], lease_s=60)
    async with push(decode) as new, push(decode) as old:
        await new.write(offer(decode, "u", 1, epoch=8))
        await asyncio.to_thread(wait_until, lambda: "u" in decode.endpoint.receiver._waiting)
        await old.write(offer(decode, "t", 1, epoch=7))
        assert await answer(old) == (Kind.REFUSED, "kv_peer_mismatch")
    async with push(decode) as new:
        await new.write(offer(decode, "t", 1, epoch=8))
        assert await reply(new) == (Kind.GRANT, 0)
    decode.endpoint.cancel_receive("t")
    await asyncio.to_thread(decode.wait_finished, "t")
    assert decode.bad == set()


async def test_sender_that_gives_up_on_its_stream_is_not_waited_for(make_side: MakeSide) -> None:
    decode = make_side()
    decode.expect("t", [2], lease_s=60)
    async with push(decode) as call:
        await call.write(offer(decode, "t", 1))
        assert await reply(call) == (Kind.GRANT, 0)
        await call.write(problem_frame(Kind.ABORT, Problem("kv_staging_full", "no memory")))
        assert await answer(call) == (Kind.FAILED, "kv_transfer_aborted")
        assert not decode.endpoint.receiver._expected
    await asyncio.to_thread(decode.wait_finished, "t")
    assert decode.bad == {2}
