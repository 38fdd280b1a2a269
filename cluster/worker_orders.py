"""What a running worker is told: to drain and end, or to change its role.

Owns the command lines that its launcher writes to its standard input, and the signals that ask for its end. Must not
know the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from typing import Final, Protocol

from cluster.worker import RoleWorker
from core.types import Role

_LOG = logging.getLogger(__name__)

SIGNAL_DRAIN_S: Final = 30.0  # a worker that a signal ends lets running legs go on this long
_READ_BYTES: Final = 1 << 16


class Told(Protocol):
    """Hears what became of an order."""

    def draining(self, reason: str) -> None:
        """The worker takes no new legs and will end."""
        ...

    def role(self, address: str, worker: RoleWorker) -> None:
        """The worker has taken the role in its hello."""
        ...


class WorkerOrders:
    """Obeys from its making until the worker is to end; made on the event loop."""

    def __init__(self, worker: RoleWorker, *, events: Told, address: str) -> None:
        self._worker = worker
        self._events = events
        self._address = address
        self._rest = b""  # the beginning of a command line
        self._hurry = asyncio.Event()  # a signal came: what runs has SIGNAL_DRAIN_S
        self._role_change: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._drain: asyncio.Future[tuple[str, float | None]] = loop.create_future()  # why, and the limit in seconds
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._take_signal, number)
        self._listen(sys.stdin.fileno() if sys.stdin is not None else None)

    async def run(self) -> None:
        """Return when the worker was told to end and no leg runs any more, or its time for that is over."""
        try:
            reason, timeout_s = await self._drain
            self._worker.drain()
            self._events.draining(reason)
            await self._idle(timeout_s)
        finally:
            if self._role_change is not None:
                self._role_change.cancel()

    def _listen(self, fd: int | None) -> None:
        """Read command lines, if the launcher has opened a pipe for them."""
        if fd is None:
            return
        with contextlib.suppress(OSError, PermissionError):  # a file or /dev/null cannot be waited for
            os.set_blocking(fd, False)
            asyncio.get_running_loop().add_reader(fd, self._read, fd)

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:  # the launcher is gone; the kernel ends this process with it, if it was asked to
            asyncio.get_running_loop().remove_reader(fd)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, order: dict[str, object]) -> None:
        match order:
            case {"command": "drain", "timeout_s": timeout_s}:
                self._end("told to", None if timeout_s is None else float(str(timeout_s)))
            case {"command": "role", "role": role, "within_s": within_s}:
                change = self._change_role(Role(str(role)), float(str(within_s)))
                if self._role_change is not None:
                    self._role_change.cancel()
                self._role_change = asyncio.create_task(change, name="role change")
            case _:
                _LOG.warning("unknown order ignored: %s", order)

    def _take_signal(self, number: signal.Signals) -> None:
        self._hurry.set()
        self._end(f"got {number.name}", SIGNAL_DRAIN_S)

    def _end(self, reason: str, timeout_s: float | None) -> None:
        if not self._drain.done():
            self._drain.set_result((reason, timeout_s))

    async def _change_role(self, role: Role, within_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._worker.idle()
        self._worker.take_role(role)
        self._events.role(self._address, self._worker)

    async def _idle(self, timeout_s: float | None) -> None:
        """Wait until no leg runs, or `timeout_s` has passed, or the time that a signal leaves."""
        idle = asyncio.create_task(self._worker.idle(), name="drain")
        hurried = asyncio.create_task(self._hurried(), name="hurry")
        try:
            await asyncio.wait((idle, hurried), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()
            hurried.cancel()

    async def _hurried(self) -> None:
        await self._hurry.wait()
        await asyncio.sleep(SIGNAL_DRAIN_S)
