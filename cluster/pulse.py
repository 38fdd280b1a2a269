"""Notices that something which gives a sign of life every second gives none any more.

Owns the count. Must not know what gives the signs, nor what follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

BEAT_S: Final = 1.0  # between two signs of life


class Pulse:
    """Counts beats without a sign; not seconds, so that a stall of this process is not held against the other."""

    def __init__(self, limit_s: float, on_silence: Callable[[float], None]) -> None:
        """Prepare; after `limit_s` without a sign `on_silence` is called with that time, once."""
        self._limit_s = limit_s
        self._max_silent = max(2, round(limit_s / BEAT_S))
        self._on_silence = on_silence
        self._num_silent = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Count from now on; needs a running loop."""
        self._num_silent = 0
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._tick)

    def heard(self) -> None:
        """Take a sign of life."""
        self._num_silent = 0

    def stop(self) -> None:
        """Count no more; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._num_silent += 1
        if self._num_silent > self._max_silent:
            self._timer = None
            self._on_silence(self._limit_s)
            return
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._tick)
