"""Silence is noticed once, and not while there are signs."""

from __future__ import annotations

import asyncio
import time

import pytest

from cluster import pulse
from cluster.pulse import Pulse

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT_S", 0.01)


async def test_silence_is_told_once_and_with_its_limit() -> None:
    told: asyncio.Queue[float] = asyncio.Queue()
    watched = Pulse(0.05, told.put_nowait)
    watched.start()
    async with asyncio.timeout(WAIT_S):
        assert await told.get() == 0.05
    assert watched._timer is None


async def test_a_stall_of_this_process_is_no_silence() -> None:
    told: list[float] = []
    watched = Pulse(0.05, told.append)
    watched.start()
    time.sleep(0.2)  # noqa: ASYNC251  (the stall)
    watched.heard()
    await asyncio.sleep(0)
    assert told == []
    watched.stop()
    watched.stop()


async def test_signs_of_life_begin_the_count_anew() -> None:
    told: list[float] = []
    watched = Pulse(0.03, told.append)
    watched.start()
    for _ in range(20):
        for _ in range(3):
            watched._tick()
        watched.heard()
    assert told == []
    for _ in range(4):
        watched._tick()
    assert told == [0.03]
    watched.stop()
