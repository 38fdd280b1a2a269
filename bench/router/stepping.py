"""Simulated engines that cost next to nothing: every sequence of a batch gets its token at each step of a timer.

Owns the timer and the batch. Must not know how tokens leave (HTTP, or Baton's session protocol).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from bench.router.answers import token_event

_CLOCK_MONOTONIC: Final = 1  # linux/time.h
_TFD_FLAGS: Final = 0o4000 | 0o2000000  # non-blocking, closed on exec: sys/timerfd.h
_NS_PER_S: Final = 1_000_000_000


@dataclass(slots=True)
class Timing:
    """How fast the engines are; changed between tests."""

    ttft_us: int = 0
    itl_us: int = 0  # 0: all tokens at once


class StepTimer:
    """Calls back at exact periods, by a timer of the kernel: those of the event loop count whole milliseconds."""

    def __init__(self, on_steps: Callable[[int], None]) -> None:
        """Make a timer at rest; `on_steps` hears how many periods have ended, more than one when it is late."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._on_steps = on_steps
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def start(self, period_us: int) -> None:
        """Tick each `period_us` microseconds from now on; 0 stops."""
        seconds, rest_ns = divmod(period_us * 1000, _NS_PER_S)
        setting = (ctypes.c_long * 4)(seconds, rest_ns, seconds, rest_ns)  # struct itimerspec: interval, first
        if self._libc.timerfd_settime(self._fd, 0, setting, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Stop for good."""
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        try:
            ended = int.from_bytes(os.read(self._fd, 8), "little")
        except BlockingIOError:  # it was stopped after it had rung
            return
        self._on_steps(ended)


class Sequence(Protocol):
    """A request in the batch."""

    left: int  # tokens still to come

    def token(self, event: bytes) -> None:
        """Take the next token, which is not the last."""
        ...

    def end(self, event: bytes) -> None:
        """Take the last token."""
        ...


class Batch:
    """The decode batch of one engine."""

    def __init__(self, timing: Timing, on_step: Callable[[], None] = lambda: None) -> None:
        """Make an empty batch; `on_step` is called after each step."""
        self._timing = timing
        self._on_step = on_step
        self._sequences: dict[int, Sequence] = {}  # all and only those with tokens to come, by id
        self._timer = StepTimer(self._step)
        self._is_ticking = False

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self._sequences)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence join: its first token comes with the next step."""
        if not self._timing.itl_us:
            for _ in range(sequence.left - 1):
                sequence.token(token_event(time.monotonic_ns()))
            sequence.end(token_event(time.monotonic_ns(), is_last=True))
            return
        self._sequences[id(sequence)] = sequence
        if not self._is_ticking:
            self._is_ticking = True
            self._timer.start(self._timing.itl_us)

    def remove(self, sequence: Sequence) -> None:
        """Drop a sequence whose client has left, if it is there."""
        self._sequences.pop(id(sequence), None)

    def close(self) -> None:
        """Stop the steps."""
        self._timer.close()

    def _step(self, num_steps: int) -> None:
        for _ in range(num_steps):  # a late engine makes up: the load offered is the load that was asked for
            stamp_ns = time.monotonic_ns()
            event = token_event(stamp_ns)
            for key, sequence in tuple(self._sequences.items()):
                sequence.left -= 1
                if sequence.left:
                    sequence.token(event)
                else:
                    del self._sequences[key]
                    sequence.end(token_event(stamp_ns, is_last=True))
        if not self._sequences:
            self._timer.start(0)
            self._is_ticking = False
        self._on_step()
