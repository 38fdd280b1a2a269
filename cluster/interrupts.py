"""Ctrl-C and SIGTERM, counted instead of raised: a start or a stop in progress decides where it can give up.

Owns the two signal handlers while in use. Must not know what is interrupted.
"""

from __future__ import annotations

import os
import select
import signal
from types import FrameType, TracebackType
from typing import Self

from core.errors import BatonError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BatonError):
    """The user asked to stop."""

    name = "interrupted"


class Interrupts:
    """Counts SIGINT and SIGTERM while entered; use in the main thread."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[signal.Signals, signal._HANDLER] = {}
        # Handlers run between two instructions of the main thread, where no lock may be taken: a pipe tells of them.
        self._readable, self._writable = os.pipe()

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.getsignal(number)
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._readable)
        os.close(self._writable)

    def install(self) -> None:
        """Take the signals, again if need be: a process that joins Ray gets a handler of Ray's for SIGTERM."""
        for number in SIGNALS:
            signal.signal(number, self._take)

    def check(self) -> None:
        """Raise Interrupted once a signal came."""
        if self.count:
            raise Interrupted("interrupted; everything it started is stopped")

    def wait(self, timeout_s: float) -> bool:
        """Wait for a signal; tell whether one has come."""
        return bool(select.select([self._readable], [], [], timeout_s)[0])

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            os.write(self._writable, b"!")
