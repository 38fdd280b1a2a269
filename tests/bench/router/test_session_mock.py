"""Mock workers keep to the order of a hand-over and answer as engines do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from bench.router.session_mock import HandoverTable, MockWorker
from bench.router.stepping import Timing
from core.engine import HttpCall
from core.types import Handover, Leg, LegFacts, LegOrder, Role

WAIT_S = 10.0
ORDER = LegOrder()
TICKET = Handover("t1", "127.0.0.1:1", 30.0)


class Kept:
    """A reply that is kept."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.data = b""
        self.measured: LegFacts | None = None

    def start(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        self.status, self.headers = status, dict(headers)

    def body(self, data: bytes) -> None:
        assert self.status
        self.data += data

    def facts(self, facts: LegFacts) -> None:
        self.measured = facts

    def tokens(self, token_ids: Sequence[int]) -> None:
        pass


def call(body: bytes) -> HttpCall:
    return HttpCall("r", "POST", "/v1/completions", (), body)


UNARY = call(b'{"model":"mock","prompt":"hello","max_tokens":3}')
STREAM = call(b'{"model":"mock","prompt":"hello","max_tokens":3,"temperature":0,"stream":true}')


@pytest.fixture
async def pair() -> AsyncIterator[tuple[MockWorker, MockWorker, HandoverTable]]:
    timing, handovers = Timing(itl_us=300), HandoverTable()
    prefill, decode = (MockWorker(f"{r.value}-0", r, timing=timing, handovers=handovers) for r in Role)
    yield prefill, decode, handovers
    prefill.close()
    decode.close()


@pytest.mark.parametrize("decode_first", [True, False])
async def test_decode_answers_once_its_prompt_has_landed(
    pair: tuple[MockWorker, MockWorker, HandoverTable], decode_first: bool
) -> None:
    prefill, decode, handovers = pair
    reply, by_product = Kept(), Kept()
    sender = prefill.run(Leg.PREFILL, STREAM, TICKET, ORDER, by_product)
    if decode_first:
        receiver = asyncio.create_task(decode.run(Leg.DECODE, STREAM, TICKET, ORDER, reply))
        await asyncio.sleep(0)
        assert (reply.status, len(handovers)) == (0, 1)
        await sender
    else:
        await sender
        receiver = asyncio.create_task(decode.run(Leg.DECODE, STREAM, TICKET, ORDER, reply))
    async with asyncio.timeout(WAIT_S):
        await receiver
    assert by_product.headers["content-type"] == "application/json"
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.data.count(b'" t=') == 3
    assert reply.data.endswith(b"data: [DONE]\n\n")
    assert reply.measured == LegFacts(prompt_tokens=19, received_tokens=19)
    assert len(handovers) == 0


async def test_a_hand_over_that_will_not_come_is_not_waited_for(
    pair: tuple[MockWorker, MockWorker, HandoverTable],
) -> None:
    _, decode, handovers = pair
    reply = Kept()
    receiver = asyncio.create_task(decode.run(Leg.DECODE, UNARY, TICKET, ORDER, reply))
    await asyncio.sleep(0)
    await decode.cancel_transfer("t1", "prefill is gone")
    async with asyncio.timeout(WAIT_S):
        await receiver
    assert reply.status == 200
    assert len(handovers) == 0


async def test_an_aborted_leg_leaves_nothing(pair: tuple[MockWorker, MockWorker, HandoverTable]) -> None:
    prefill, decode, handovers = pair
    await prefill.run(Leg.PREFILL, STREAM, TICKET, ORDER, Kept())
    stream = asyncio.create_task(decode.run(Leg.DECODE, STREAM, TICKET, ORDER, Kept()))
    waiting = asyncio.create_task(decode.run(Leg.DECODE, STREAM, Handover("t2", "", 1.0), ORDER, Kept()))
    await asyncio.sleep(0)
    assert decode.state().num_running == 1
    for task in (stream, waiting):
        task.cancel()
    await asyncio.gather(stream, waiting, return_exceptions=True)
    assert (decode.state().num_running, len(handovers)) == (0, 0)


async def test_steps_are_told_once_for_all_legs_of_a_pass(pair: tuple[MockWorker, MockWorker, HandoverTable]) -> None:
    _, decode, _ = pair
    told: list[int] = []
    done = asyncio.Event()

    def stepped() -> None:
        told.append(1)
        done.set()

    decode.on_step(stepped)
    await asyncio.gather(*(decode.run(Leg.WHOLE, UNARY, None, ORDER, Kept()) for _ in range(5)))
    async with asyncio.timeout(WAIT_S):
        await done.wait()
    assert len(told) == 1
