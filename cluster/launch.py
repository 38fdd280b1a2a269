"""Starts a worker as a child process, hears of its start, and makes sure that all of it ends.

Owns one child process tree. Must not know Ray or what the worker does; used by Ray actors and by tests.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from core.errors import StartFailed
from core.types import Fingerprint, Role, WorkerHello, WorkerRecord
from core.worker_spec import WorkerSpec

logger = logging.getLogger(__name__)

Event = Mapping[str, object]

CHECKOUT = Path(__file__).resolve().parent.parent
LOG_LINES_IN_ERRORS = 20
_TAIL_BYTES = 64 << 10


class WorkerProcess:
    """One worker process and its children; made by `start`, to be ended by `stop` or `kill`.

    The child is killed by the kernel when the thread that called `start` ends; call it from a thread that lives on.
    """

    def __init__(
        self, spec: WorkerSpec, popen: subprocess.Popen[bytes], log_path: Path, on_event: Callable[[Event], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.spec = spec
        self.pid = popen.pid
        self.hello: WorkerHello | None = None
        self._popen = popen
        self._log_path = log_path
        self._on_event = on_event
        self._started: asyncio.Future[WorkerRecord] = loop.create_future()
        self._exited: asyncio.Future[int] = loop.create_future()
        self._failure = ""
        self._buffer = b""

    @classmethod
    async def start(
        cls,
        spec: WorkerSpec,
        *,
        log_path: Path,
        on_event: Callable[[Event], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> WorkerProcess:
        """Spawn the process of `spec`, in its own session, with stdout and stderr appended to `log_path`.

        `on_event` hears each event as it comes. `env` is added to this process's environment. Raises StartFailed when
        the process cannot be spawned.
        """
        spec_file = _write_spec(spec)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        events_in, events_out = os.pipe()
        try:
            popen = _spawn(spec_file, events_out, log_path, env or {})
        except OSError as exc:
            os.close(events_in)
            raise StartFailed(f"worker {spec.worker_id} cannot be spawned: {exc}") from exc
        finally:
            os.close(events_out)
        process = cls(spec, popen, log_path, on_event or (lambda event: None))
        process._watch(events_in)
        return process

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
        if not self._exited.done():
            self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                return await self.exited()
        except TimeoutError:
            self.kill()
            return await self.exited()

    def kill(self) -> None:
        """Kill the worker and its children at once; idempotent."""
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def exited(self) -> int:
        """Wait for the end of the worker process; return its exit code, negative for a signal."""
        return await asyncio.shield(self._exited)

    @property
    def failure(self) -> str:
        """Why the worker says it failed; empty if it did not."""
        return self._failure

    def tree_pids(self) -> tuple[int, ...]:
        """List the worker process and every process below it that is alive, the worker first."""
        found = [self.pid] if _is_alive(self.pid) else []
        for pid in found:
            found.extend(_children(pid))
        return tuple(found)

    def last_log_lines(self, count: int) -> list[str]:
        """Return up to `count` last lines of the log."""
        with contextlib.suppress(OSError), self._log_path.open("rb") as log:
            log.seek(max(self._log_path.stat().st_size - _TAIL_BYTES, 0))
            return list(collections.deque(log.read().decode(errors="replace").splitlines(), maxlen=count))
        return []

    def _signal(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(signum)

    def _watch(self, events_fd: int) -> None:
        loop = asyncio.get_running_loop()
        os.set_blocking(events_fd, False)
        loop.add_reader(events_fd, self._read_events, events_fd)
        pidfd = os.pidfd_open(self.pid)
        loop.add_reader(pidfd, self._reap, pidfd, events_fd)

    def _read_events(self, fd: int) -> None:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(fd)
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take_event(json.loads(line))

    def _take_event(self, event: Event) -> None:
        if event["event"] == "ready":
            self.hello = _hello(event["hello"])
            record = WorkerRecord(
                worker_id=self.spec.worker_id,
                role=self.spec.role,
                epoch=self.spec.epoch,
                address=str(event["address"]),
                node=socket.gethostname(),
            )
            if not self._started.done():
                self._started.set_result(record)
        elif event["event"] == "failed":
            self._failure = f"{event['error']}: {event['message']}"
        self._on_event(event)

    def _reap(self, pidfd: int, events_fd: int) -> None:
        """Kill what the process left behind, then take its exit code: until then its group cannot be another's."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(pidfd)
        os.close(pidfd)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        code = self._popen.wait()
        self._read_events(events_fd)
        loop.remove_reader(events_fd)
        os.close(events_fd)
        if not self._started.done():
            self._started.set_exception(StartFailed(self._failure or f"exited with {code} before it was ready"))
            self._started.exception()  # retrieved: `ready` may never be called
        self._exited.set_result(code)


def _spawn(spec_file: Path, events_fd: int, log_path: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **env}
    paths = [str(CHECKOUT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    command = [sys.executable, "-m", "cluster.worker_process", "--spec", str(spec_file)]
    command += ["--events-fd", str(events_fd), "--parent-pid", str(os.getpid()), "--start-time", str(time.time())]
    with log_path.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=(events_fd,),
            start_new_session=True,
        )


def _write_spec(spec: WorkerSpec) -> Path:
    """Write the spec into its run folder, where only its owner can read it: it holds the cluster's token."""
    run_dir = Path(spec.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    file = run_dir / f"{spec.worker_id}.spec.json"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as stream:
        stream.write(spec.to_json())
    return file


def _hello(raw: object) -> WorkerHello:
    assert isinstance(raw, dict)
    fields = dict(raw)
    fields["role"] = Role(fields["role"])
    fields["fingerprint"] = Fingerprint(**fields["fingerprint"])
    return WorkerHello(**fields)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in tasks.iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if _is_alive(child)]


def _is_alive(pid: int) -> bool:
    """Tell whether `pid` runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
