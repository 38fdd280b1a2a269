"""The Ray actors that host one process each: a worker or the router.

Owns the start of the child, its events and its end; keeps the events of the child there is, so that a controller that
starts anew can follow it from its beginning. Must not know placement, membership or what the process does; no token
goes through here. The classes are plain, so that no import of Ray is needed to read them.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from cluster.child import LOG_LINES_IN_ERRORS, Event
from cluster.host_events import (
    Draining,
    Ended,
    HostEvent,
    HostFacts,
    HostReport,
    RoleTaken,
    Spawned,
    StageDone,
    WorkerReady,
)
from cluster.launch import WorkerProcess
from cluster.router_process import RouterProcess
from cluster.standby import Standby
from cluster.topology import node_gpus
from core.errors import StartFailed
from core.router_spec import RouterSpec
from core.types import Role
from core.worker_spec import WorkerSpec

NOT_SPAWNED = 127  # exit code of a process that could not be started, as shells have it


class _Story:
    """What became of one process so far."""

    def __init__(self) -> None:
        self._events: list[HostEvent] = []  # a dozen in a process's life, two for each change of its role
        self._news = asyncio.Event()  # replaced at each event: whoever holds it learns of the next one

    def add(self, event: HostEvent) -> None:
        """Go on with `event`."""
        self._events.append(event)
        news, self._news = self._news, asyncio.Event()
        news.set()

    @property
    def events(self) -> tuple[HostEvent, ...]:
        """All so far."""
        return tuple(self._events)

    async def follow(self, told: int) -> AsyncIterator[HostEvent]:
        """Yield the events after the first `told`, as they come, to the process's end."""
        while not any(isinstance(event, Ended) for event in self._events[:told]):
            while told < len(self._events):
                told += 1
                yield self._events[told - 1]
            if not any(isinstance(event, Ended) for event in self._events):
                await self._news.wait()


class WorkerHost:
    """Runs one worker process after another, each under an epoch of its own."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._process: WorkerProcess | None = None
        self._spec: WorkerSpec | None = None
        self._story = _Story()
        self._stopping = False
        self._reaper: asyncio.Task[None] | None = None
        self._standby = Standby()

    def __repr__(self) -> str:
        """Name the worker in Ray's logs and lists; Ray asks once, right after the actor's start."""
        return self._worker_id

    async def facts(self) -> HostFacts:
        """Describe the place."""
        cores = tuple(sorted(os.sched_getaffinity(0)))
        gpus = await asyncio.to_thread(node_gpus)
        return HostFacts(socket.gethostname(), os.getpid(), cores, gpus, niceness=os.nice(0))

    async def alive(self) -> bool:
        """Answer: this machine is there."""
        return True

    async def report(self) -> HostReport:
        """Say where this is and what was started."""
        return HostReport(await self.facts(), self._spec, self._story.events)

    async def run(self, spec: WorkerSpec, log_path: str, told: int = 0) -> AsyncIterator[HostEvent]:
        """Start the worker of `spec`, unless it was, and yield what becomes of it, until its end.

        The first `told` events are known already. A worker of an earlier epoch must have ended.
        """
        if self._spec is None or self._spec.epoch != spec.epoch:
            await self._start(spec, Path(log_path))
        async for event in self._story.follow(told):
            yield event

    async def _start(self, spec: WorkerSpec, log_path: Path) -> None:
        story = self._story = _Story()
        self._spec = spec
        try:
            process = await self._standby.become(spec, log_path, lambda event: self._take(story, event))
        except StartFailed as exc:
            story.add(Ended(NOT_SPAWNED, str(exc)))
            return
        self._process = process
        if self._stopping:
            process.kill()
        story.add(Spawned(process.pid))
        self._reaper = asyncio.create_task(self._tell_end(process, story), name=f"exit of {self._worker_id}")

    def _take(self, story: _Story, event: Event) -> None:
        process = self._process
        match event["event"]:
            case "stage":
                story.add(StageDone(str(event["name"]), float(str(event["elapsed_s"]))))
            case "draining":
                story.add(Draining(str(event["reason"])))
            case "ready":
                assert process is not None
                assert process.record is not None
                assert process.hello is not None
                story.add(WorkerReady(process.record, process.hello))
                self._standby.prepare(process.spec)
            case "role":
                assert process is not None
                assert process.record is not None
                assert process.hello is not None
                story.add(RoleTaken(process.record, process.hello, int(str(event["num_legs"]))))

    async def _tell_end(self, process: WorkerProcess, story: _Story) -> None:
        code = await process.exited()
        lines = tuple(process.last_log_lines(LOG_LINES_IN_ERRORS))
        story.add(Ended(code, process.failure or f"exited with {code}", lines))

    async def drain(self, timeout_s: float | None) -> None:
        """Have the worker finish what runs and end, within `timeout_s` if that is given; returns at once."""
        if self._process is not None:
            self._process.drain(timeout_s)

    async def take_role(self, role: Role, within_s: float) -> None:
        """Have the worker change its role once it is idle, at the latest in `within_s`; returns at once."""
        if self._process is not None:
            self._process.take_role(role, within_s)

    async def kill(self) -> None:
        """Kill the process there is; another may be started."""
        if self._process is not None:
            self._process.kill()

    async def stop(self, grace_s: float) -> None:
        """End the worker: drained within `grace_s`, else killed. One that starts later is killed at once."""
        self._stopping = True
        self._standby.end()
        if self._process is not None:
            await self._process.stop(grace_s)

    async def last_log_lines(self) -> tuple[str, ...]:
        """Return the end of the worker's log."""
        return tuple(self._process.last_log_lines(LOG_LINES_IN_ERRORS)) if self._process else ()


class RouterHost:
    """Runs one router process after another."""

    def __init__(self) -> None:
        self._process: RouterProcess | None = None
        self._generation = 0  # of the process there is; 0: none
        self._story = _Story()
        self._stopping = False
        self._teller: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        """Name the actor in Ray's logs and lists."""
        return "router"

    async def run(self, fields: RouterSpec, log_path: str, generation: int) -> AsyncIterator[HostEvent]:
        """Start the router and yield what becomes of it, until its end; without starting a `generation` twice."""
        if generation != self._generation:
            self._generation = generation
            await self._start(fields, Path(log_path))
        async for event in self._story.follow(0):
            yield event

    async def _start(self, fields: RouterSpec, log_path: Path) -> None:
        story = self._story = _Story()
        try:
            process = self._process = await RouterProcess.start(fields, log_path)
        except StartFailed as exc:
            story.add(Ended(NOT_SPAWNED, str(exc)))
            return
        if self._stopping:
            await process.stop(0)
        self._teller = asyncio.create_task(self._tell(process, story), name="router events")

    async def _tell(self, process: RouterProcess, story: _Story) -> None:
        while True:
            event = await process.next_event()
            story.add(event)
            if isinstance(event, Ended):
                return

    async def generation(self) -> int:
        """Say which process there is, or was last; 0: none."""
        return self._generation

    async def end(self, grace_s: float) -> None:
        """End the process there is, within `grace_s`; another may be started."""
        if self._process is not None:
            await self._process.stop(grace_s)

    async def stop(self, grace_s: float) -> None:
        """End the router: what runs may finish within `grace_s`. One that starts later is killed at once."""
        self._stopping = True
        await self.end(grace_s)
