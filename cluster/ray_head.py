"""The Ray head that Baton starts when there is no Ray to join, and ends again.

Owns one process tree and its temporary folder. Must not know what runs on it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.ray_runtime import LOOPBACK, OWN_RAY_ENVIRONMENT, TEMP_PREFIX, prepare_environment, python_path
from cluster.state import ProcessIdentity
from core.errors import StartFailed

OBJECT_STORE_BYTES = 80_000_000  # Ray's minimum is 75 MiB; nothing of Baton goes through it
STOP_GRACE_S = 20.0
USUAL_DASHBOARD_PORT = 8265


@dataclass(frozen=True, slots=True)
class OwnRay:
    """A Ray head that Baton started."""

    address: str  # host:port
    process: ProcessIdentity
    temp_dir: str
    dashboard_url: str  # empty: no dashboard


@dataclass(frozen=True, slots=True)
class HeadOptions:
    """What a head is to be."""

    num_cpus: int
    num_gpus: int
    dashboard: bool
    log_path: Path
    timeout_s: float


def start_own_ray(options: HeadOptions, *, check: Callable[[], None], on_started: Callable[[OwnRay], None]) -> OwnRay:
    """Start a Ray head on the loopback address, in a session of its own, and wait until it takes drivers.

    `on_started` hears of the process at once. `check` is called while waiting and may raise to give up. Raises
    StartFailed. On every exception the head is ended.
    """
    prepare_environment(None)
    port, client_port, agent_port, dashboard_port = _free_ports(4)
    if options.dashboard and _is_free(USUAL_DASHBOARD_PORT):
        dashboard_port = USUAL_DASHBOARD_PORT
    temp_dir = tempfile.mkdtemp(prefix=TEMP_PREFIX)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--port={port}", f"--node-ip-address={LOOPBACK}", f"--temp-dir={temp_dir}"),
        *(f"--num-cpus={options.num_cpus}", f"--num-gpus={options.num_gpus}"),
        *(f"--object-store-memory={OBJECT_STORE_BYTES}", f"--ray-client-server-port={client_port}"),
        *(f"--include-dashboard={options.dashboard}", f"--dashboard-port={dashboard_port}"),
        *(f"--dashboard-agent-listen-port={agent_port}", "--include-log-monitor=false", "--disable-usage-stats"),
        *("--log-style=record", "--log-color=false", *(() if options.dashboard else ("--no-monitor",))),
    ]
    environment = {**os.environ, **OWN_RAY_ENVIRONMENT, "PYTHONPATH": python_path(os.environ)}
    environment.pop("RAY_ADDRESS", None)
    with options.log_path.open("ab") as log:
        head = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    identity = ProcessIdentity.of(head.pid)
    assert identity is not None  # a child not yet waited for
    dashboard_url = f"http://{LOOPBACK}:{dashboard_port}" if options.dashboard else ""
    own = OwnRay(f"{LOOPBACK}:{port}", identity, temp_dir, dashboard_url)
    try:
        on_started(own)
        _wait_for_head(head, own, options, check)
    except BaseException:
        stop_own_ray(own.process, temp_dir, keep_logs_in=options.log_path.parent, grace_s=0)
        raise
    return own


def stop_own_ray(process: ProcessIdentity, temp_dir: str | None, *, keep_logs_in: Path, grace_s: float) -> None:
    """End a Ray head that Baton started, with SIGTERM, and SIGKILL after `grace_s`; its logs move to `keep_logs_in`.

    Its children die with it: Ray ties them to it in the kernel. Idempotent.
    """
    if process.alive:
        os.kill(process.pid, signal.SIGTERM)
        if not _wait_for_end(process, grace_s):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            _wait_for_end(process, STOP_GRACE_S)
    if temp_dir and Path(temp_dir).name.startswith(TEMP_PREFIX):
        logs = Path(temp_dir) / "session_latest" / "logs"
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(logs, keep_logs_in / "ray", dirs_exist_ok=True)
        shutil.rmtree(temp_dir, ignore_errors=True)


def _wait_for_head(head: subprocess.Popen[bytes], own: OwnRay, options: HeadOptions, check: Callable[[], None]) -> None:
    """Wait for the line Ray writes when all of its processes run; an open port alone comes too early."""
    log_path = options.log_path
    deadline = time.monotonic() + options.timeout_s
    while "Ray runtime started" not in log_path.read_text(errors="replace"):
        check()
        code = head.poll()
        if code is not None:
            raise StartFailed(f"Ray ended with {code} while starting\n{_end_of(log_path)}")
        if time.monotonic() > deadline:
            raise StartFailed(f"Ray at {own.address} is not up after {options.timeout_s:g} s\n{_end_of(log_path)}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(0.1)


def _wait_for_end(process: ProcessIdentity, timeout_s: float) -> bool:
    """Wait for the end of a process that may or may not be our child; tell whether it came."""
    deadline = time.monotonic() + timeout_s
    while process.alive:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)  # no process but a parent is told of an end
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return True


def _end_of(log_path: Path) -> str:
    lines = log_path.read_text(errors="replace").splitlines()[-20:]
    return f"end of {log_path}:\n" + "\n".join(lines)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind((LOOPBACK, port))
        return True
    return False
