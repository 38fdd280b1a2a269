"""What stands in for Ray: actors of this process, and hosts whose workers share another one.

Owns the process of the workers and the routing of what it tells. Everything above cluster.ray_actors is as ever. Must
not know controllers.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from cluster import ray_actors, ray_runtime, worker_places
from cluster.host_events import Ended, HostEvent, HostFacts, HostReport, RoleTaken, Spawned, WorkerReady
from cluster.placement import Node, WorkerPlacement
from core.types import Fingerprint, Role, WorkerHello, WorkerRecord
from core.worker_spec import WorkerSpec

HERE: Final = "127.0.0.1"
NODE_ID: Final = "n1"
_KILLED: Final = -9
_LINE_BYTES: Final = 1 << 20
_CLOSE_S: Final = 30.0


class WorkersProcess:
    """The process of all workers, as hosts speak with it."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process
        self._waiting: asyncio.Queue[asyncio.Future[dict[str, Any]]] = asyncio.Queue()  # answers come in order
        self._reader: asyncio.Task[None]

    async def start(self) -> None:
        """Start it."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.control_plane.workers",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
        )
        self._reader = asyncio.create_task(self._read(), name="workers")

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    async def ask(self, **order: str) -> dict[str, Any]:
        """Have one order carried out; return what it led to."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(answer)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return await answer

    async def close(self) -> None:
        """End it, and all workers with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._reader.cancel()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            (await self._waiting.get()).set_result(json.loads(line))


class SharedHost:
    """What cluster.host.WorkerHost is, for a worker of the shared process."""

    def __init__(self, workers: WorkersProcess, worker_id: str) -> None:
        self._workers, self._worker_id = workers, worker_id
        self._events: asyncio.Queue[HostEvent] = asyncio.Queue()
        self._spec: WorkerSpec | None = None

    async def facts(self) -> HostFacts:
        """Describe the place."""
        return HostFacts(socket.gethostname(), os.getpid(), tuple(sorted(os.sched_getaffinity(0))), (), 0)

    async def report(self) -> HostReport:
        """Say what was started."""
        return HostReport(await self.facts(), self._spec)

    async def run(self, spec: WorkerSpec, log_path: str, told: int = 0) -> AsyncIterator[HostEvent]:
        """Start the worker of `spec` and yield what becomes of it, until its end."""
        self._spec, self._events = spec, asyncio.Queue()
        yield Spawned(self._workers.pid)
        ready = await self._workers.ask(command="start", spec=spec.to_json())
        yield WorkerReady(self._record(ready), _hello(ready))
        while not isinstance(event := await self._events.get(), Ended):
            yield event
        yield event

    async def take_role(self, role: Role, within_s: float) -> None:
        """Have the worker change its role at once."""
        told = await self._workers.ask(command="role", worker=self._worker_id, role=role.value)
        self._events.put_nowait(RoleTaken(self._record(told), _hello(told), int(told["num_legs"])))

    async def drain(self, timeout_s: float | None) -> None:
        """End the worker at once."""
        await self._end(0)

    async def kill(self) -> None:
        """End the worker as a crash does."""
        await self._end(_KILLED)

    async def stop(self, grace_s: float) -> None:
        """End the worker with all others, when their process ends."""

    async def last_log_lines(self) -> tuple[str, ...]:
        """Return nothing: workers of one process have no log of their own."""
        return ()

    async def _end(self, code: int) -> None:
        await self._workers.ask(command="end", worker=self._worker_id)
        self._events.put_nowait(Ended(code, f"exited with {code}"))

    def _record(self, told: dict[str, Any]) -> WorkerRecord:
        assert self._spec is not None
        return WorkerRecord(
            self._worker_id, Role(told["hello"]["role"]), self._spec.epoch, told["address"], told["node"]
        )


class _Actor:
    """A handle as Ray gives it, of an object in this process."""

    def __init__(self, made: object) -> None:
        self.made = made

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self.made, name))


class _Method:
    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *arguments: object) -> Any:
        if inspect.isasyncgenfunction(self._method):
            return self._stream(*arguments)
        return asyncio.ensure_future(self._method(*arguments))

    async def _stream(self, *arguments: object) -> AsyncIterator[asyncio.Future[object]]:
        events = self._method(*arguments)
        while True:
            following = asyncio.ensure_future(anext(events, None))
            if await asyncio.shield(following) is None:
                return
            yield following


class LocalRay:
    """All actors by name, on one node with room for `cpus` workers of one core."""

    def __init__(self, workers: WorkersProcess, *, cpus: float) -> None:
        self.nodes = (Node(NODE_ID, HERE, {"CPU": cpus}, {"CPU": cpus}),)
        self._workers = workers
        self._actors: dict[str, _Actor] = {}

    def install(self) -> None:
        """Take Ray's place in this process."""
        replaced: tuple[tuple[object, str, object], ...] = (
            (ray_actors, "reserve", self._reserve),
            (ray_actors, "create_in_group", self._create_in_group),
            (ray_actors, "create_on_node", self._create_on_node),
            (ray_actors, "find", self._actors.get),
            (ray_actors, "remove", lambda name: self._actors.pop(name, None)),
            (ray_actors, "was_made_anew", lambda: False),
            (ray_runtime, "alive_nodes", lambda: self.nodes),
            (worker_places, "WorkerHost", lambda worker_id: SharedHost(self._workers, worker_id)),
        )
        for module, name, stand_in in replaced:
            setattr(module, name, stand_in)

    async def kill(self, worker_id: str) -> None:
        """End a worker as a crash does."""
        host = next(a.made for n, a in self._actors.items() if n.partition(".")[0] == worker_id)
        assert isinstance(host, SharedHost)
        await host.kill()

    async def _reserve(self, placement: WorkerPlacement, timeout_s: float, *, name: str) -> str:
        return name

    def _create_in_group(self, made: Callable[..., object], *arguments: object, name: str, **_: object) -> _Actor:
        self._actors[name] = _Actor(made(*arguments))
        return self._actors[name]

    def _create_on_node(self, made: Callable[..., object], *arguments: object, name: str, **_: object) -> _Actor:
        return self._create_in_group(made, *arguments, name=name)


def _hello(told: dict[str, Any]) -> WorkerHello:
    fields = dict(told["hello"])
    return WorkerHello(**{**fields, "role": Role(fields["role"]), "fingerprint": Fingerprint(**fields["fingerprint"])})
