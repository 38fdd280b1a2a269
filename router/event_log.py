"""The router's event log: every decision of the policy, and what it was based on, as JSON lines in a file.

Owns the file, its bound and what is done when the disk is slow or full. Must not influence any decision: when the log
cannot keep up it leaves decisions out and says so, when it cannot be written it ends. What is written is core.events'
business.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Final

import orjson

from core.cluster_state import ViewDeltas
from core.errors import ConfigError
from core.events import Decided, Event, LogOpened, Skipped, fields_of
from core.policy.context import PolicyContext
from core.types import ClusterView, Decision, RequestShape

MAX_FILE_BYTES: Final = 256 << 20  # and as much again in the file before it
MAX_WAITING_BYTES: Final = 16 << 20
WRITE_INTERVAL_S: Final = 0.5

log = logging.getLogger(__name__)


class EventLog:
    """Takes notes in memory, writes them from a thread; `keep_writing` runs until it is cancelled."""

    def __init__(
        self,
        path: Path,
        *,
        policy: str,
        context: PolicyContext,
        max_file_bytes: int = MAX_FILE_BYTES,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """Begin a file; one that is there becomes the file before it. Raises ConfigError when that cannot be done."""
        self._path = path
        self._opened = LogOpened(policy, context)
        self._max_file_bytes = max_file_bytes
        self._max_waiting_bytes = max_waiting_bytes
        self._deltas = ViewDeltas()
        self._waiting: list[bytes | None] = []  # lines in order; None: here a new file begins
        self._waiting_bytes = 0
        self._skipped = 0
        self._broken = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="event-log")  # one: batches stay in order
        try:
            self._file = begin_file(path)
        except OSError as exc:
            raise ConfigError(
                f"router.event_log: {path} cannot be written ({exc.strerror}); name a file in a folder that exists"
            ) from exc
        self._file_bytes = 0  # with what waits to be written to it
        self._add(self._opened)

    def decided(
        self,
        request: RequestShape,
        excluded: Collection[str],
        view: ClusterView,
        now_s: float,
        decision: Decision,
    ) -> None:
        """Note one decision, taken of `view` without the `excluded` workers; `view` is the whole cluster."""
        if self._broken:
            return
        if self._waiting_bytes > self._max_waiting_bytes:
            if not self._skipped:
                log.warning("the event log cannot keep up and leaves decisions out")
            self._skipped += 1
            return
        if self._skipped:
            self._add(Skipped(self._skipped))
            self._skipped = 0
            self._deltas.forget()
        if self._file_bytes > self._max_file_bytes:
            self._begin_file()
        for event in self._deltas.next(view):
            self._add(event)
        self._add(Decided(now_s, request, tuple(sorted(excluded)), decision))

    def reopened(self, context: PolicyContext) -> None:
        """Note that the policy was made anew with `context`; what is known of the cluster is told again."""
        self._opened = LogOpened(self._opened.policy, context)
        self._deltas.forget()
        if not self._broken:
            self._add(self._opened)

    async def keep_writing(self) -> None:
        """Write what has been noted, every WRITE_INTERVAL_S."""
        while True:
            await asyncio.sleep(WRITE_INTERVAL_S)
            await self.write()

    async def write(self) -> None:
        """Write what has been noted so far; an error of the disk ends the log."""
        if not self._waiting:
            return
        lines, self._waiting, num_bytes = self._waiting, [], self._waiting_bytes
        await asyncio.get_running_loop().run_in_executor(self._writer, self._write, lines)
        self._waiting_bytes -= num_bytes

    async def close(self) -> None:
        """Write the rest and close the file; call it when `keep_writing` has ended."""
        if self._skipped and not self._broken:
            self._add(Skipped(self._skipped))
        await self.write()
        await asyncio.get_running_loop().run_in_executor(self._writer, self._file.close)
        self._writer.shutdown()

    def _add(self, event: Event) -> None:
        line = orjson.dumps(fields_of(event), option=orjson.OPT_APPEND_NEWLINE)
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        self._file_bytes += len(line)

    def _begin_file(self) -> None:
        """Let the next lines stand in a file that can be read without the one before."""
        self._waiting.append(None)
        self._file_bytes = 0
        self._deltas.forget()
        self._add(self._opened)

    def _write(self, lines: list[bytes | None]) -> None:
        """Write in the thread, whether or not anyone still waits for it; nothing follows what could not be written."""
        if self._broken:
            return
        try:
            self._write_in_batches(lines)
        except OSError as exc:
            self._broken = True
            log.error("the event log %s ends here: %s", self._path, exc.strerror)

    def _write_in_batches(self, lines: list[bytes | None]) -> None:
        batch: list[bytes] = []
        for line in lines:
            if line is not None:
                batch.append(line)
                continue
            write_all(self._file, b"".join(batch))
            batch = []
            self._file.close()
            self._file = begin_file(self._path)
        write_all(self._file, b"".join(batch))


def begin_file(path: Path) -> FileIO:
    """Make an empty file that only its owner may read; keep the one that was there under another name."""
    if path.is_fifo():
        raise OSError(errno.ESPIPE, "it is a pipe")  # which nobody may ever read
    if path.is_file():
        os.replace(path, path.with_name(path.name + ".1"))
    return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a")


def write_all(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
