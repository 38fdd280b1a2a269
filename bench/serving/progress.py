"""One line on a terminal that tells how a run goes: how far, TTFT, TPOT and attainment of late.

Owns the line. Writes nothing where there is no terminal. Must not touch the run.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from types import TracebackType
from typing import Final, Self, TextIO

from bench.serving.load_run import LoadRun
from bench.serving.metrics import ClassTargets, Targets, targets_of
from bench.serving.timing import Timing

_EVERY_S: Final = 0.5
_RECENT: Final = 200  # requests that count as of late
_BAR: Final = 10


class Progress:
    """Watches the run that it is called with, until the block ends."""

    def __init__(self, stream: TextIO, targets: ClassTargets) -> None:
        self._stream = stream if stream.isatty() else None
        self._targets = targets
        self._task: asyncio.Task[None] | None = None
        self._written = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._write("")

    def __call__(self, load: LoadRun) -> None:
        """Begin to watch."""
        if self._stream is not None:
            self._task = asyncio.get_running_loop().create_task(self._watch(load), name="progress")

    async def _watch(self, load: LoadRun) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            self._write(line(load, self._targets))

    def _write(self, text: str) -> None:
        if self._stream is not None:
            text = text[: shutil.get_terminal_size().columns - 1]
            self._stream.write("\r" + text.ljust(self._written) + ("" if text else "\r"))
            self._stream.flush()
            self._written = len(text)


def line(load: LoadRun, targets: ClassTargets) -> str:
    """Tell of a run in one line."""
    live = load.live
    done, total = len(live.ended), max(live.total, 1)
    filled = _BAR * done // total
    words = [f"[{'#' * filled}{'.' * (_BAR - filled)}] {done}/{live.total}"]
    recent = live.ended[-_RECENT:]
    complete = [t for t in recent if t.is_complete]
    if complete:
        words.append(f"TTFT {statistics.median(t.ttft_ms for t in complete):.0f} ms")
        words.append(f"TPOT {statistics.median(t.tpot_ms for t in complete):.1f} ms")
    kept = [found.met_by(t) for t in recent if (found := _targets(t, targets)) is not None]
    if kept:
        words.append(f"attainment {sum(kept) / len(kept):.0%}")
    words.append(f"{live.in_flight} in flight, {time.perf_counter() - live.began_s:.0f} s")
    failed = sum(bool(t.error) for t in recent)
    if failed:
        words.append(f"{failed} of the last {len(recent)} failed")
    return "  ".join(words)


def _targets(timing: Timing, targets: ClassTargets) -> Targets | None:
    return None if timing.is_cancelled else targets_of(timing, targets)
