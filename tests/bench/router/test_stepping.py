"""Every sequence gets its tokens, in order, one a step, and steps end with the last sequence."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

from bench.router.stepping import Batch, StepTimer, Timing

WAIT_S = 10.0


class Kept:
    """A sequence that keeps its tokens."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens
        self.events: list[bytes] = []
        self.ended = asyncio.Event()

    def token(self, event: bytes) -> None:
        assert not self.ended.is_set()
        self.events.append(event)

    def end(self, event: bytes) -> None:
        self.events.append(event)
        self.ended.set()


@pytest.fixture
async def timing_and_batch() -> AsyncIterator[tuple[Timing, Batch, list[int]]]:
    timing, steps = Timing(itl_us=500), [0]

    def stepped() -> None:
        steps[0] += 1

    batch = Batch(timing, stepped)
    yield timing, batch, steps
    batch.close()


async def test_sequences_of_any_length_end_after_their_tokens(
    timing_and_batch: tuple[Timing, Batch, list[int]],
) -> None:
    _, batch, steps = timing_and_batch
    for _ in range(2):  # the second time from rest
        sequences = [Kept(tokens) for tokens in (1, 5, 3)]
        for sequence in sequences:
            batch.add(sequence)
        assert len(batch) == 3
        async with asyncio.timeout(WAIT_S):
            for sequence in sequences:
                await sequence.ended.wait()
        assert [len(sequence.events) for sequence in sequences] == [1, 5, 3]
        assert len(batch) == 0
    assert 2 <= steps[0] <= 10


async def test_one_step_gives_all_the_same_time_and_time_goes_on(
    timing_and_batch: tuple[Timing, Batch, list[int]],
) -> None:
    _, batch, _ = timing_and_batch
    one, other = Kept(4), Kept(4)
    batch.add(one)
    batch.add(other)
    async with asyncio.timeout(WAIT_S):
        await other.ended.wait()
    assert one.events == other.events
    assert all(a != b for a, b in itertools.pairwise(one.events))


async def test_a_sequence_whose_client_left_gets_nothing_more(
    timing_and_batch: tuple[Timing, Batch, list[int]],
) -> None:
    _, batch, _ = timing_and_batch
    gone, stays = Kept(3), Kept(3)
    batch.add(gone)
    batch.add(stays)
    batch.remove(gone)
    async with asyncio.timeout(WAIT_S):
        await stays.ended.wait()
    assert gone.events == []


async def test_engines_without_a_step_time_answer_at_once(timing_and_batch: tuple[Timing, Batch, list[int]]) -> None:
    timing, batch, _ = timing_and_batch
    timing.itl_us = 0
    sequence = Kept(4)
    batch.add(sequence)
    assert sequence.ended.is_set()
    assert len(sequence.events) == 4


async def test_the_timer_rings_until_it_is_stopped() -> None:
    rung = asyncio.Event()
    counts: list[int] = []

    def ring(ended: int) -> None:
        counts.append(ended)
        if sum(counts) >= 3:
            timer.start(0)
            rung.set()

    timer = StepTimer(ring)
    timer.start(300)
    async with asyncio.timeout(WAIT_S):
        await rung.wait()
    timer.close()
    assert all(count >= 1 for count in counts)
