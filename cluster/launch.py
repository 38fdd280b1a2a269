"""Starts a worker as a child process and hears of its start.

Must not know Ray or what the worker does; used by Ray actors and by tests.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from cluster.child import LOG_LINES_IN_ERRORS, ChildProcess, Event, write_private
from cluster.pulse import Pulse
from core.errors import StartFailed
from core.types import Fingerprint, Role, WorkerHello, WorkerRecord
from core.worker_spec import WorkerSpec

CHECKOUT = Path(__file__).resolve().parent.parent


class WorkerProcess:
    """One worker process and its children; made by `start`, to be ended by `stop` or `kill`.

    Once ready, it is killed when it gives no sign of life for the time in its spec.
    The child is killed by the kernel when the thread that called `start` ends; call it from a thread that lives on.
    """

    def __init__(self, spec: WorkerSpec, log_path: Path, on_event: Callable[[Event], None]) -> None:
        self.spec = spec
        self.hello: WorkerHello | None = None  # None: it was not ready yet
        self.record: WorkerRecord | None = None  # as it is now, its role included; None: it was not ready yet
        self._log_path = log_path
        self._on_event = on_event
        self._started: asyncio.Future[WorkerRecord] = asyncio.get_running_loop().create_future()
        self._failure = ""
        self._pulse = Pulse(spec.silence_s, self._take_silence)
        self._child: ChildProcess

    @classmethod
    async def start(
        cls,
        spec: WorkerSpec,
        *,
        log_path: Path,
        on_event: Callable[[Event], None] | None = None,
        env: Mapping[str, str] | None = None,
        stands_by: bool = False,
    ) -> WorkerProcess:
        """Spawn the process of `spec`, in its own session, with stdout and stderr appended to `log_path`.

        `on_event` hears each event as it comes. `env` is added to this process's environment. One that `stands_by`
        loads its libraries and waits for `begin`. Raises StartFailed when the process cannot be spawned.
        """
        spec_file = _write_spec(spec)
        process = cls(spec, log_path, on_event or (lambda event: None))
        try:
            process._child = ChildProcess.spawn(
                lambda events_fd: _command(spec_file, events_fd, stands_by=stands_by),
                log_path,
                on_event=process._take_event,
                on_end=process._take_end,
                env=_environment(env or {}),
                is_told=True,
            )
        except OSError as exc:
            raise StartFailed(f"worker {spec.worker_id} cannot be spawned: {exc}") from exc
        return process

    def can_become(self, spec: WorkerSpec) -> bool:
        """Whether one that stands by, and is there yet, was made for the same place and settings as `spec`."""
        is_alike = replace(self.spec, epoch=spec.epoch, role=spec.role) == spec
        return is_alike and bool(self.tree_pids())

    def begin(self, spec: WorkerSpec, on_event: Callable[[Event], None]) -> None:
        """Have one that stands by become the worker of `spec`."""
        self.spec = spec
        self._on_event = on_event
        _write_spec(spec)
        self._child.tell({"command": "begin"})

    @property
    def pid(self) -> int:
        """The worker process."""
        return self._child.pid

    async def ready(self, timeout_s: float) -> WorkerRecord:
        """Wait until the worker takes sessions. Raises StartFailed, with the end of its log, and kills what is left."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._started)
        except TimeoutError:
            reason = f"not ready after {timeout_s:g} s"
        except StartFailed as exc:
            reason = str(exc)
        self.kill()
        log = "\n".join(self.last_log_lines(LOG_LINES_IN_ERRORS))
        raise StartFailed(f"worker {self.spec.worker_id}: {reason}\nend of {self._log_path}:\n{log}")

    async def stop(self, grace_s: float) -> int:
        """Ask the worker to drain and end; kill it after `grace_s`. Return its exit code, negative for a signal."""
        return await self._child.stop(grace_s)

    def drain(self, timeout_s: float | None) -> None:
        """Have the worker take no new legs and end when none runs, or `timeout_s` has passed; None: no limit."""
        self._child.tell({"command": "drain", "timeout_s": timeout_s})

    def take_role(self, role: Role, within_s: float) -> None:
        """Have the worker take `role` once no leg runs, at the latest `within_s` from now; those that run go on.

        It says so by the event "role".
        """
        self._child.tell({"command": "role", "role": role.value, "within_s": within_s})

    def kill(self) -> None:
        """Kill the worker and its children at once; idempotent."""
        self._child.kill()

    async def exited(self) -> int:
        """Wait for the end of the worker process; return its exit code, negative for a signal."""
        return await self._child.exited()

    @property
    def failure(self) -> str:
        """Why the worker says it failed, or was given up; empty if neither."""
        return self._failure

    def tree_pids(self) -> tuple[int, ...]:
        """List the worker process and every process below it that is alive, the worker first."""
        return self._child.tree_pids()

    def last_log_lines(self, count: int) -> list[str]:
        """Return up to `count` last lines of the log."""
        return self._child.last_log_lines(count)

    def _take_event(self, event: Event) -> None:
        self._pulse.heard()
        if event["event"] == "alive":
            return
        if event["event"] in ("ready", "role"):
            self.hello = _hello(event["hello"])
            self.record = WorkerRecord(
                worker_id=self.spec.worker_id,
                role=self.hello.role,
                epoch=self.spec.epoch,
                address=str(event["address"]),
                node=socket.gethostname(),
            )
            if not self._started.done():
                self._started.set_result(self.record)
                self._pulse.start()
        elif event["event"] == "failed":
            self._failure = f"{event['error']}: {event['message']}"
        self._on_event(event)

    def _take_silence(self, limit_s: float) -> None:
        self._failure = f"worker_silent: it gave no sign of life for {limit_s:g} s and was killed"
        self.kill()

    def _take_end(self, code: int) -> None:
        self._pulse.stop()
        if not self._started.done():
            self._started.set_exception(StartFailed(self._failure or f"exited with {code} before it was ready"))
            self._started.exception()  # retrieved: `ready` may never be called


def _write_spec(spec: WorkerSpec) -> Path:
    spec_file = Path(spec.run_dir) / f"{spec.worker_id}.spec.json"
    write_private(spec_file, spec.to_json())
    return spec_file


def _command(spec_file: Path, events_fd: int, *, stands_by: bool) -> list[str]:
    command = [sys.executable, "-m", "cluster.worker_process", "--spec", str(spec_file)]
    command += ["--events-fd", str(events_fd), "--parent-pid", str(os.getpid()), "--start-time", str(time.time())]
    return [*command, "--standby"] if stands_by else command


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    environment = {**os.environ, **added}
    paths = [str(CHECKOUT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


def _hello(raw: object) -> WorkerHello:
    assert isinstance(raw, dict)
    fields = dict(raw)
    fields["role"] = Role(fields["role"])
    fields["fingerprint"] = Fingerprint(**fields["fingerprint"])
    return WorkerHello(**fields)
