"""Starts the router as a child process and makes sure that it ends; the child is cluster.router_child."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

from cluster.child import LOG_LINES_IN_ERRORS, ChildProcess, Event, write_private
from cluster.host_events import Ended, HostEvent, RouterReady, Spawned
from cluster.pulse import Pulse
from core.errors import StartFailed
from core.router_spec import RouterSpec

SILENCE_S = 10.0  # a router that gives no sign of life for this long is killed


class RouterProcess:
    """One router process; `next_event` tells what becomes of it, until its end.

    The child is killed by the kernel when the thread that called `start` ends; call it from a thread that lives on.
    """

    def __init__(self) -> None:
        self._failure = ""
        self._pulse = Pulse(SILENCE_S, self._take_silence)
        self._events: asyncio.Queue[HostEvent] = asyncio.Queue()
        self._child: ChildProcess

    @classmethod
    async def start(cls, spec: RouterSpec, log_path: Path) -> RouterProcess:
        """Spawn the router in a session of its own; it logs to `log_path`. Raises StartFailed."""
        process = cls()
        try:
            process._child = ChildProcess.spawn(
                lambda events_fd: _command(replace(spec, events_fd=events_fd)),
                log_path,
                on_event=process._take_event,
                on_end=process._take_end,
            )
        except OSError as exc:
            raise StartFailed(f"the router cannot be spawned: {exc}") from exc
        process._events.put_nowait(Spawned(process._child.pid))
        return process

    async def next_event(self) -> HostEvent:
        """Wait for the next event; the last one is Ended."""
        return await self._events.get()

    async def stop(self, grace_s: float) -> None:
        """Ask the router to finish what runs and end; kill it after `grace_s`."""
        await self._child.stop(grace_s)

    def _take_event(self, event: Event) -> None:
        self._pulse.heard()
        if event["event"] == "ready":
            self._pulse.start()
            self._events.put_nowait(RouterReady(str(event["address"])))
        elif event["event"] == "failed":
            self._failure = f"{event['error']}: {event['message']}"

    def _take_silence(self, limit_s: float) -> None:
        self._failure = f"router_silent: it gave no sign of life for {limit_s:g} s and was killed"
        self._child.kill()

    def _take_end(self, code: int) -> None:
        self._pulse.stop()
        reason = self._failure or f"exited with {code}"
        self._events.put_nowait(Ended(code, reason, tuple(self._child.last_log_lines(LOG_LINES_IN_ERRORS))))


def _command(spec: RouterSpec) -> list[str]:
    spec_file = Path(spec.run_dir) / "router.spec.json"
    write_private(spec_file, spec.to_json())
    command = [sys.executable, "-m", "cluster.router_child", "--parent-pid", str(os.getpid()), "--spec"]
    return [*command, str(spec_file)]
