"""Starts the router as a child process and makes sure that it ends.

Owns the child, its spec file and its events. The router's package lies above this one: it is named, never imported,
and what it is told is written by the field names of its RouterSpec.

`python -m cluster.router_process --parent-pid N -- ARGUMENTS` is the child: the router, tied to its parent's life.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.host_events import Ended, HostEvent, RouterReady, Spawned
from core.config.models import BatonConfig
from core.config.specs import default_slo_class
from core.errors import StartFailed
from engine.process_guard import die_with_parent

ROUTER_MODULE = "router"
LOG_LINES_IN_ERRORS = 20


@dataclass(frozen=True, slots=True)
class SLOTargetFields:
    """One SLO class, by the names of router.spec.SLOTarget."""

    name: str
    ttft_s: float
    tpot_s: float
    attainment: float


@dataclass(frozen=True, slots=True)
class RouterFields:
    """What a router is told, by the names of router.spec.RouterSpec."""

    host: str
    port: int
    membership_address: str  # host:port
    run_dir: str
    slo_classes: tuple[SLOTargetFields, ...]
    slo_default: str
    policy: str
    lease_s: float
    max_body_bytes: int
    max_concurrent_requests: int
    request_timeout_s: float
    token: str
    events_fd: int | None = None

    @classmethod
    def from_config(cls, config: BatonConfig, *, membership_address: str, run_dir: str, token: str) -> RouterFields:
        """Take what the router needs out of the configuration."""
        classes = config.slo.classes.items()
        return cls(
            host=config.router.host,
            port=config.router.port,
            membership_address=membership_address,
            run_dir=run_dir,
            slo_classes=tuple(
                SLOTargetFields(name, c.ttft_ms / 1000, c.tpot_ms / 1000, c.attainment) for name, c in classes
            ),
            slo_default=default_slo_class(config),
            policy=config.router.policy,
            lease_s=config.kv.lease_s,
            max_body_bytes=int(config.router.max_body_mb * (1 << 20)),
            max_concurrent_requests=config.router.max_concurrent_requests,
            request_timeout_s=config.router.request_timeout_s,
            token=token,
        )


class RouterProcess:
    """One router process; `events` yields what becomes of it, until its end.

    The child is killed by the kernel when the thread that called `start` ends; call it from a thread that lives on.
    """

    def __init__(self, popen: subprocess.Popen[bytes], log_path: Path, events_fd: int) -> None:
        self._popen = popen
        self._log_path = log_path
        self._failure = ""
        self._buffer = b""
        self._events: asyncio.Queue[HostEvent] = asyncio.Queue()
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._events.put_nowait(Spawned(popen.pid))
        self._watch(events_fd)

    @classmethod
    async def start(cls, fields: RouterFields, log_path: Path) -> RouterProcess:
        """Spawn the router in a session of its own; it logs to `log_path`. Raises StartFailed."""
        events_in, events_out = os.pipe()
        try:
            popen = _spawn(fields, events_out, log_path)
        except OSError as exc:
            os.close(events_in)
            raise StartFailed(f"the router cannot be spawned: {exc}") from exc
        finally:
            os.close(events_out)
        return cls(popen, log_path, events_in)

    async def next_event(self) -> HostEvent:
        """Wait for the next event; the last one is Ended."""
        return await self._events.get()

    async def stop(self, grace_s: float) -> None:
        """Ask the router to finish what runs and end; kill it after `grace_s`."""
        if not self._exited.done():
            self._popen.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await asyncio.shield(self._exited)
        except TimeoutError:
            if not self._exited.done():
                os.killpg(self._popen.pid, signal.SIGKILL)
            await asyncio.shield(self._exited)

    def _watch(self, events_fd: int) -> None:
        loop = asyncio.get_running_loop()
        os.set_blocking(events_fd, False)
        loop.add_reader(events_fd, self._read_events, events_fd)
        pidfd = os.pidfd_open(self._popen.pid)
        loop.add_reader(pidfd, self._reap, pidfd, events_fd)

    def _read_events(self, fd: int) -> None:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(fd)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["event"] == "ready":
                self._events.put_nowait(RouterReady(event["address"]))
            elif event["event"] == "failed":
                self._failure = f"{event['error']}: {event['message']}"

    def _reap(self, pidfd: int, events_fd: int) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(pidfd)
        os.close(pidfd)
        code = self._popen.wait()
        self._read_events(events_fd)
        loop.remove_reader(events_fd)
        os.close(events_fd)
        reason = self._failure or f"exited with {code}"
        self._events.put_nowait(Ended(code, reason, last_lines(self._log_path, LOG_LINES_IN_ERRORS)))
        self._exited.set_result(code)


def last_lines(path: Path, count: int) -> tuple[str, ...]:
    """Return up to `count` last lines of a log; none when it is not there."""
    with contextlib.suppress(OSError), path.open(errors="replace") as log:
        return tuple(line.rstrip("\n") for line in collections.deque(log, maxlen=count))
    return ()


def _spawn(fields: RouterFields, events_fd: int, log_path: Path) -> subprocess.Popen[bytes]:
    run_dir = Path(fields.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    spec_file = run_dir / "router.spec.json"
    spec = json.dumps({**asdict(fields), "events_fd": events_fd})
    # Only its owner may read it: it holds the cluster's token.
    with os.fdopen(os.open(spec_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(spec)
    command = [sys.executable, "-m", "cluster.router_process", "--parent-pid", str(os.getpid()), "--spec"]
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [*command, str(spec_file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(events_fd,),
            start_new_session=True,
        )


def main() -> None:
    """Become the router; ends with the parent named by the first two arguments."""
    _, flag, parent_pid, *rest = sys.argv
    assert flag == "--parent-pid"
    die_with_parent(int(parent_pid))
    sys.argv[1:] = rest
    runpy.run_module(ROUTER_MODULE, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
