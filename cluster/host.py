"""The Ray actors that host one process each: a worker or the router.

Owns the start of the child, its events and its end. Must not know placement, membership or what the process does; no
token goes through here. The classes are plain, so that no import of Ray is needed to read them.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from cluster.child import LOG_LINES_IN_ERRORS, Event
from cluster.host_events import Ended, HostEvent, HostFacts, Spawned, StageDone, WorkerReady
from cluster.launch import WorkerProcess
from cluster.router_process import RouterProcess
from cluster.topology import node_gpus
from core.router_spec import RouterSpec
from core.worker_spec import WorkerSpec

_AT_HAND_S = 1.0  # a record that the process has told of is there already


class WorkerHost:
    """Runs one worker process."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._process: WorkerProcess | None = None
        self._stopping = False

    def __repr__(self) -> str:
        """Name the worker in Ray's logs and lists; Ray asks once, right after the actor's start."""
        return self._worker_id

    async def facts(self) -> HostFacts:
        """Describe the place."""
        cores = tuple(sorted(os.sched_getaffinity(0)))
        gpus = await asyncio.to_thread(node_gpus)
        return HostFacts(socket.gethostname(), os.getpid(), cores, gpus, niceness=os.nice(0))

    async def run(self, spec: WorkerSpec, log_path: str) -> AsyncIterator[HostEvent]:
        """Start the worker of `spec` and yield what becomes of it, until its end. Raises StartFailed."""
        told: asyncio.Queue[Event | int] = asyncio.Queue()  # a dozen events in a worker's life, then its exit code
        process = await WorkerProcess.start(spec, log_path=Path(log_path), on_event=told.put_nowait)
        self._process = process
        if self._stopping:
            process.kill()
        exited = asyncio.create_task(process.exited(), name=f"exit of {self._worker_id}")
        exited.add_done_callback(lambda task: told.put_nowait(task.result()))
        yield Spawned(process.pid)
        while not isinstance(event := await told.get(), int):
            if event["event"] == "stage":
                yield StageDone(str(event["name"]), float(str(event["elapsed_s"])))
            elif event["event"] == "ready":
                assert process.hello is not None
                yield WorkerReady(await process.ready(_AT_HAND_S), process.hello)
        reason = process.failure or f"exited with {event}"
        yield Ended(event, reason, await self.last_log_lines())

    async def stop(self, grace_s: float) -> None:
        """End the worker: drained within `grace_s`, else killed. One that starts later is killed at once."""
        self._stopping = True
        if self._process is not None:
            await self._process.stop(grace_s)

    async def last_log_lines(self) -> tuple[str, ...]:
        """Return the end of the worker's log."""
        return tuple(self._process.last_log_lines(LOG_LINES_IN_ERRORS)) if self._process else ()


class RouterHost:
    """Runs the router process."""

    def __init__(self) -> None:
        self._process: RouterProcess | None = None
        self._stopping = False

    def __repr__(self) -> str:
        """Name the actor in Ray's logs and lists."""
        return "router"

    async def run(self, fields: RouterSpec, log_path: str) -> AsyncIterator[HostEvent]:
        """Start the router and yield what becomes of it, until its end. Raises StartFailed."""
        process = self._process = await RouterProcess.start(fields, Path(log_path))
        if self._stopping:
            await process.stop(0)
        while not isinstance(event := await process.next_event(), Ended):
            yield event
        yield event

    async def stop(self, grace_s: float) -> None:
        """End the router: what runs may finish within `grace_s`. One that starts later is killed at once."""
        self._stopping = True
        if self._process is not None:
            await self._process.stop(grace_s)
