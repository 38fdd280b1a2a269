"""The commands `up`, `down` and `status`.

Owns what each does to the record on disk and what its exit code means: 0 done or serving, 1 nothing runs or it does
not serve. Errors are raised, for the command line to word. Must not know flags.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from cluster import ray_runtime
from cluster.cluster_status import ClusterStatus
from cluster.console import Console, RouterReport, ready_lines, status_lines
from cluster.front import curl_line, front_of
from cluster.interrupts import Interrupted, Interrupts
from cluster.router_probe import ask_router
from cluster.running import running_cluster
from cluster.startup import Startup, UpRequest
from cluster.state import ClusterRecord, StateDir
from cluster.teardown import take_down
from core.config.models import BatonConfig
from core.control.actions import DeciderFactory
from core.errors import ConfigError, StartFailed
from core.planning import Planner

OK = 0
NOT_SERVING = 1
STATUS_S = 10.0  # a controller that was made anew looks for its cluster first
WATCH_S = 3.0  # how often a waiting `up --foreground` looks after what it started


def up(
    config: BatonConfig,
    *,
    config_path: str | Path | None,
    foreground: bool,
    as_json: bool,
    engine_kind: str = "vllm",
    engine_args: tuple[str, ...] = (),
    planner: Planner | None = None,
    decider: DeciderFactory | None = None,
) -> int:
    """Start Ray if none is to be joined, the workers and the router; return 0 once a completion was served.

    `planner` chooses the pools when the configuration says `pools: auto`; `decider`, a function of a module, makes what
    decides sizes and roles where `scaling` or a later `apply` wants it. With `foreground`, wait for SIGINT or SIGTERM
    and take everything down again. Raises ConfigError before anything is started, for a promise that the cluster's
    devices cannot keep too; StartFailed or Interrupted after all that was started is stopped again.
    """
    console = Console(as_json=as_json)
    state = StateDir.find(os.environ)
    request = UpRequest(config, str(config_path) if config_path else None, engine_kind, engine_args, planner, decider)
    with Interrupts() as interrupts:
        _refuse_second(state, console, interrupts)
        try:
            record, status = Startup(request, state=state, console=console, interrupts=interrupts).run()
        except BaseException as exc:
            _clean_up(state, console, interrupts, exc)
            raise
        finally:
            _disconnect(interrupts)
        _announce(console, config, record, status, foreground=foreground)
        return _stay(state, record, console, interrupts) if foreground else OK


def down(*, as_json: bool) -> int:
    """Stop what `up` started from this checkout, and nothing else; return 0 also when nothing ran."""
    console = Console(as_json=as_json)
    state = StateDir.find(os.environ)
    record = state.read()
    if record is None:
        console.line("nothing runs")
        console.result({"ok": True, "stopped": False})
        return OK
    # An `up --foreground` learns from this that its cluster is stopped on purpose.
    record = state.update_starter(record, os.getpid())
    with Interrupts() as interrupts:
        take_down(state, record, console=console, interrupts=interrupts, hurry=False)
    console.line(f"stopped; logs are in {record.run_dir}")
    console.result({"ok": True, "stopped": True, "url": record.url, "run_dir": record.run_dir})
    return OK


def status(*, as_json: bool) -> int:
    """Show what runs; return 0 if it serves, 1 if nothing runs or it does not serve."""
    console = Console(as_json=as_json)
    state = StateDir.find(os.environ)
    record = state.read()
    if record is None:
        return _nothing(console, f"nothing runs (no record in {state.path})")
    try:
        found = controller_status(record)
    except StartFailed as exc:
        return _nothing(console, f"nothing runs any more: {exc}; `down` clears what is left")
    report = ask_router(front_of(record.url, Path(record.run_dir))) if record.url else RouterReport("starting", "", {})
    console.block(status_lines(found, report, url=record.url, ray_tools=_ray_tools(record), plan=record.plan))
    console.result(
        {
            "ok": report.serves,
            "url": record.url,
            "health": report.health,
            "health_reason": report.reason,
            "ray_address": record.ray_address,
            "started_ray": record.started_ray,
            "run_dir": record.run_dir,
            "config_path": record.config_path,
            "plan": list(record.plan),
            **asdict(found),
            "loads": {name: asdict(load) for name, load in report.loads.items()},
            "promises": [asdict(promise) for promise in report.promises],
        }
    )
    return OK if report.serves else NOT_SERVING


def _refuse_second(state: StateDir, console: Console, interrupts: Interrupts) -> None:
    """Raise ConfigError when a cluster of this checkout runs; clear what is left of one that does not."""
    record = state.read()
    if record is None:
        state.remove()  # unreadable, or absent
        return
    try:
        if not record.starter.alive or record.url:
            controller_status(record)
        raise ConfigError(
            f"Baton runs already at {record.url or record.ray_address}; `apply` changes it, `down` stops it"
        )
    except StartFailed:
        interrupts.install()  # asking Ray has given SIGTERM away
        console.stage("preflight", "clearing what is left of an earlier run")
        take_down(state, record, console=console, interrupts=interrupts, hurry=True)


def _clean_up(state: StateDir, console: Console, interrupts: Interrupts, exc: BaseException) -> None:
    record = state.read()
    if record is None or not _is_ours(record):
        return
    if not isinstance(exc, ConfigError):
        console.stage("stopping", "everything that was started" if isinstance(exc, Interrupted) else "after a failure")
    _disconnect(interrupts)
    take_down(state, record, console=console, interrupts=interrupts, hurry=True)


def _disconnect(interrupts: Interrupts) -> None:
    """Let go of Ray, which gives SIGTERM back to the system: it would end this process and leave all else running."""
    ray_runtime.disconnect()
    interrupts.install()


def _is_ours(record: ClusterRecord) -> bool:
    return record.starter.pid == os.getpid() and record.starter.alive


def _announce(
    console: Console, config: BatonConfig, record: ClusterRecord, found: ClusterStatus, *, foreground: bool
) -> None:
    stop = "Ctrl-C stops everything." if foreground else "Stop everything with: python baton.py down"
    run_dir = Path(record.run_dir)
    lines = ready_lines(
        config,
        found,
        url=record.url,
        curl=curl_line(front_of(record.url, run_dir), run_dir),
        run_dir=record.run_dir,
        ray_tools=_ray_tools(record),
        stop=stop,
    )
    console.stage("ready", "requests are served")
    console.block(lines)
    console.result(
        {"ok": True, "url": record.url, "run_dir": record.run_dir, "plan": list(record.plan), **asdict(found)}
    )


def _stay(state: StateDir, record: ClusterRecord, console: Console, interrupts: Interrupts) -> int:
    """Wait for a signal or the end of what runs, then take everything down."""
    lost = ""
    while not interrupts.wait(WATCH_S) and not lost:
        lost = _what_is_lost(record)
        if state.read() != record:  # looked at last: what is stopped on purpose is no loss
            console.line("stopped by another command")
            return OK
    if lost:
        console.warn(f"error: {lost}; stopping the rest. Logs are in {record.run_dir}")
    else:
        console.stage("stopping", "running requests may finish; Ctrl-C again does not wait for them")
    take_down(state, record, console=console, interrupts=interrupts, hurry=bool(lost))
    return NOT_SERVING if lost else OK


def _what_is_lost(record: ClusterRecord) -> str:
    if record.ray is not None and not record.ray.alive:
        return "Ray ended"
    if not ray_runtime.answers(record.ray_address):
        return f"Ray at {record.ray_address} does not answer"
    return "" if ray_runtime.answers(urlsplit(record.url).netloc) else "the router does not answer"


def controller_status(record: ClusterRecord) -> ClusterStatus:
    """Ask the controller of `record`. Raises StartFailed when Ray or the controller is gone."""
    with running_cluster(record) as cluster:
        found = cluster.ask("status", wait_s=STATUS_S)
        assert isinstance(found, ClusterStatus)
        return found


def _nothing(console: Console, text: str) -> int:
    console.line(text)
    console.result({"ok": False, "error": "not_running", "message": text})
    return NOT_SERVING


def _ray_tools(record: ClusterRecord) -> str:
    """Say where Ray is, and how its own tools reach a Ray of our own."""
    if not record.started_ray:
        return f"{record.ray_address}, joined: `down` leaves it running"
    if not record.dashboard_url:
        return f"{record.ray_address}, ends with Baton (`ray list actors` and the like need ray.dashboard: true)"
    variables = " ".join(f"{name}={value}" for name, value in ray_runtime.tool_environment(record.ray_address).items())
    return (
        f"{record.ray_address}, ends with Baton; dashboard {record.dashboard_url}; tools: {variables} ray list actors"
    )
