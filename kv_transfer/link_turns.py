"""Turns of hand-overs on the link of one engine, in the order that kv_transfer.coflow gives.

Owns who waits for a turn, and what the link is measured to carry. Lives on the KV thread's loop. Must not know streams:
a turn is a `with` around whatever writes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from kv_transfer.coflow import CoflowQueue

STALL_S: Final = 0.25  # a write that takes longer waits for its own receiver, not for the link: others may go
_FIRST_BYTES_PER_S: Final = 1e9  # until something was measured
_SMOOTHING: Final = 0.2  # the weight of the latest turn


class LinkTurns:
    """At most `WIDTH` hand-overs write at a time; while nobody has to wait, nobody does."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._queue = CoflowQueue(clock_s=clock_s, bytes_per_s=_FIRST_BYTES_PER_S)
        self._waiting: dict[str, asyncio.Future[None]] = {}  # all and only hand-overs that have no turn and want one

    @property
    def bytes_per_s(self) -> float:
        """What the link carries, as measured of late."""
        return self._queue.bytes_per_s

    def arrive(self, transfer_id: str, deadline_s: float, num_bytes: int) -> None:
        """Add a hand-over that must have landed at `deadline_s` of the clock. Raises ValueError if it is here."""
        self._queue.arrive(transfer_id, deadline_s, num_bytes)

    def finish(self, transfer_id: str) -> None:
        """Forget a hand-over, landed or given up; idempotent."""
        self._queue.finish(transfer_id)
        self._give()

    @asynccontextmanager
    async def turn(self, transfer_id: str, num_bytes: int) -> AsyncIterator[None]:
        """Wait for a turn to write `num_bytes`, and have it for as long as the body runs."""
        await self._wait(transfer_id, num_bytes)
        loop = asyncio.get_running_loop()
        stall = loop.call_later(STALL_S, self._end, transfer_id, num_bytes)
        began_s, width = self._clock_s(), self._queue.num_sending
        try:
            yield
        finally:
            if not stall.cancelled() and stall.when() > loop.time():
                self._measure(num_bytes * width, self._clock_s() - began_s)
            stall.cancel()
            self._end(transfer_id, num_bytes)

    async def _wait(self, transfer_id: str, num_bytes: int) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[transfer_id] = waiter
        self._queue.staged(transfer_id, num_bytes)
        self._give()
        try:
            await waiter
        except asyncio.CancelledError:
            if self._waiting.pop(transfer_id, None) is None:  # the turn came with the cancellation
                self._end(transfer_id, num_bytes)
            else:
                self._queue.withdraw(transfer_id, num_bytes)
            raise

    def _give(self) -> None:
        """Give turns while there are any to give."""
        while (transfer_id := self._queue.next()) is not None:
            waiter = self._waiting.pop(transfer_id)
            if not waiter.done():
                waiter.set_result(None)

    def _end(self, transfer_id: str, num_bytes: int) -> None:
        self._queue.sent(transfer_id, num_bytes)
        self._give()

    def _measure(self, num_bytes: float, seconds: float) -> None:
        measured = num_bytes / max(seconds, 1e-6)
        self._queue.bytes_per_s += _SMOOTHING * (measured - self._queue.bytes_per_s)
