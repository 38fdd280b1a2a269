"""Turns on a link.

Invariants: at most WIDTH bodies run at a time, but for those that have stalled; who waits gets a turn in the end, the
one due first before the others; who gives up takes no turn with it. And what it is for: of requests that a short link
cannot all carry at once, more keep their deadline than when the first to come goes first.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from kv_transfer import link_turns
from kv_transfer.coflow import WIDTH
from kv_transfer.link_turns import LinkTurns
from tests.support.kv_side import LAYERS, MakeSide, Side, wait_until
from tests.support.slow_link import SlowLink

WAIT_S = 30.0


async def test_who_is_due_first_goes_first_and_no_more_than_the_width_at_a_time() -> None:
    turns, order, running = LinkTurns(), [], 0
    may_end = asyncio.Event()
    for index in range(6):
        turns.arrive(f"t{index}", 100.0 - index, 10)

    async def write(name: str) -> None:
        nonlocal running
        async with turns.turn(name, 10):
            running += 1
            assert running <= WIDTH
            order.append(name)
            await may_end.wait()
            running -= 1
        turns.finish(name)

    tasks = [asyncio.create_task(write(f"t{index}")) for index in range(6)]
    await asyncio.wait(tasks, timeout=0.01)
    assert order == ["t0", "t1"]  # nobody else was there
    may_end.set()
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*tasks)
    assert order == ["t0", "t1", "t5", "t4", "t3", "t2"]


async def test_one_that_stalls_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_turns, "STALL_S", 0.01)
    turns = LinkTurns()
    async with asyncio.timeout(WAIT_S), AsyncExitStack() as stack:
        for index in range(3 * WIDTH):
            turns.arrive(f"t{index}", 1.0, 10)
            await stack.enter_async_context(turns.turn(f"t{index}", 10))


async def test_a_stall_says_nothing_of_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_turns, "STALL_S", 0.0)
    turns = LinkTurns()
    turns.arrive("t", 1.0, 1000)
    async with turns.turn("t", 100):
        await asyncio.wait({asyncio.ensure_future(asyncio.Event().wait())}, timeout=0.001)
    assert turns.bytes_per_s == 1e9


async def test_who_gives_up_takes_no_turn_with_it() -> None:
    turns = LinkTurns()
    async with asyncio.timeout(WAIT_S), AsyncExitStack() as stack:
        for index in range(WIDTH + 2):
            turns.arrive(f"t{index}", 1.0, 10)
        for index in range(WIDTH):
            await stack.enter_async_context(turns.turn(f"t{index}", 10))
        waiting = asyncio.create_task(stack.enter_async_context(turns.turn(f"t{WIDTH}", 10)))
        await asyncio.wait({waiting}, timeout=0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        last = asyncio.create_task(stack.enter_async_context(turns.turn(f"t{WIDTH + 1}", 10)))
        await asyncio.wait({last}, timeout=0)
        turns.finish(f"t{WIDTH}")
        turns.finish("t0")
        await last


async def test_the_link_is_measured() -> None:
    turns = LinkTurns()
    turns.arrive("t", 1.0, 1000)
    for _ in range(60):
        async with turns.turn("t", 100):
            await asyncio.wait({asyncio.ensure_future(asyncio.Event().wait())}, timeout=0.001)
    assert turns.bytes_per_s < 1e6


# Fourteen requests of equal size, which all wait before the link begins to carry. Deadlines are in link time, counted
# in what one of them needs: the tight ones can be kept if they go first, whoever has the first turns.
LOOSE, TIGHT = 8, 6
LOOSE_DUE, TIGHT_DUE = 16, 9
BLOCKS = list(range(4))
ONE_S = 0.03


@pytest.mark.parametrize("knows_slack", [False, True])
def test_more_requests_keep_their_deadline_on_a_short_link(
    make_side: MakeSide, monkeypatch: pytest.MonkeyPatch, knows_slack: bool
) -> None:
    monkeypatch.setattr(link_turns, "STALL_S", WAIT_S)  # the link stands still until all are there
    kept = run_congested(make_side, knows_slack=knows_slack)
    if knows_slack:
        assert kept == LOOSE + TIGHT
    else:
        assert kept <= LOOSE + WIDTH


def run_congested(make_side: MakeSide, *, knows_slack: bool) -> int:
    """Hand all over between two endpoints; return how many had left the link when they were due."""
    decode = make_side(seed=2, lease_s=WAIT_S)
    one_bytes = LAYERS * len(BLOCKS) * decode.endpoint.io.block_bytes
    link = SlowLink(one_bytes / ONE_S)
    prefill = make_side(seed=1, lease_s=WAIT_S, transport="tcp", wrap=link.below)
    due = {f"loose{i}": LOOSE_DUE for i in range(LOOSE)} | {f"tight{i}": TIGHT_DUE for i in range(TIGHT)}
    begin_s = time.monotonic()
    for transfer_id, units in due.items():
        decode.expect(transfer_id, BLOCKS, lease_s=WAIT_S)
        due_s = begin_s + units if knows_slack else None  # far enough away for a machine that is slow beside the link
        prefill.offer(decode.address, transfer_id, len(BLOCKS), lease_s=WAIT_S, due_s=due_s)
        prefill.send_all(transfer_id, BLOCKS)
    turns = prefill.endpoint.sender._turns
    wait_until(lambda: len(turns._waiting) == len(due) - WIDTH, WAIT_S)
    prefill.endpoint._loop.call_soon_threadsafe(link.carries.set)
    wait_landed(decode, list(due))
    return sum(link.ended_at[transfer_id] <= units * one_bytes for transfer_id, units in due.items())


def wait_landed(decode: Side, transfer_ids: list[str]) -> None:
    wanted = {f"req-{transfer_id}" for transfer_id in transfer_ids}
    wait_until(lambda: (decode.poll(), wanted <= decode.finished)[1], WAIT_S)
    assert decode.bad == set()
