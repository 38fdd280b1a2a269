"""Child processes of a test: started with a log, awaited by their HTTP health or their events, always ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]


class Child:
    """One child process in its own session."""

    def __init__(
        self, module: str, arguments: Callable[[int], Sequence[str]], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start `python -m module`; `arguments` is given the descriptor the child may write event lines to."""
        self.log = log
        reader, events_fd = os.pipe()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments(events_fd)],
                stdout=out,
                stderr=out,
                env=environment,
                pass_fds=(events_fd,),
                start_new_session=True,
                cwd=ROOT,
            )
        os.close(events_fd)
        self._events = os.fdopen(reader, "rb")

    def event(self, name: str) -> Mapping[str, str]:
        """Wait for an event line of this name. Raises AssertionError with the log's end when the child ends first."""
        for line in self._events:
            event = json.loads(line)
            if event["event"] == name:
                return event
            assert event["event"] != "failed", event
        raise AssertionError(f"the process ended:\n{self.tail()}")

    def wait_healthy(self, url: str, timeout_s: float = 180.0) -> None:
        """Wait until GET /health answers 200."""
        deadline_s = time.monotonic() + timeout_s
        with httpx.Client(timeout=5) as client:
            while time.monotonic() < deadline_s:
                assert self.process.poll() is None, f"the process ended:\n{self.tail()}"
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(url + "/health").status_code == 200:
                        return
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.2)
        raise AssertionError(f"{url} was not healthy in {timeout_s} s:\n{self.tail()}")

    def tail(self) -> str:
        """Return the end of the log."""
        return self.log.read_text(errors="replace")[-3000:]

    def stop(self, timeout_s: float = 20.0) -> None:
        """End the process and everything in its session."""
        self._events.close()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout_s)
