"""The next life of a worker, prepared while this one serves: a process that has loaded its libraries and waits.

Loading them is most of a worker's start, and on a machine whose cores are busy with serving it takes many times as
long. Owns that process until it becomes a worker. Must not know what becomes of the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cluster.child import Event
from cluster.launch import WorkerProcess
from core.errors import StartFailed
from core.worker_spec import WorkerSpec

DELAY_S: Final = 15.0  # from when a worker is ready: others of its node are often still starting


class Standby:
    """At most one process that stands by; from one event loop."""

    def __init__(self) -> None:
        self._log_path = Path()
        self._process: WorkerProcess | None = None
        self._preparing: asyncio.Task[None] | None = None

    async def become(self, spec: WorkerSpec, log_path: Path, on_event: Callable[[Event], None]) -> WorkerProcess:
        """Return a process that starts as the worker of `spec`: the one that stands by, or a new one.

        Raises StartFailed when none can be spawned.
        """
        self._log_path = log_path
        process, self._process = self._process, None
        self.end()
        if process is not None:
            if process.can_become(spec):
                process.begin(spec, on_event)
                return process
            process.kill()
        return await WorkerProcess.start(spec, log_path=log_path, on_event=on_event)

    def prepare(self, spec: WorkerSpec) -> None:
        """Have a process stand by for the next life of the worker of `spec`, if that wants one; soon."""
        if spec.has_standby and self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare(spec), name=f"standby for {spec.worker_id}")

    def end(self) -> None:
        """Have none; idempotent."""
        if self._preparing is not None:
            self._preparing.cancel()
            self._preparing = None
        if self._process is not None:
            self._process.kill()
            self._process = None

    async def _prepare(self, spec: WorkerSpec) -> None:
        await asyncio.sleep(DELAY_S)
        try:
            self._process = await WorkerProcess.start(spec, log_path=self._log_path, stands_by=True)
        except StartFailed:
            return  # the next life loads for itself
