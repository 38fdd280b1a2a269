"""One child process: spawned in a session of its own, heard through an events pipe, told through its standard input,
reaped, and never left behind.

Owns the process and all below it. Must not know what it runs or what its events mean.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Event = Mapping[str, object]

LOG_LINES_IN_ERRORS = 20
_TAIL_BYTES = 64 << 10


class ChildProcess:
    """A running child; made by `spawn`, to be ended by `stop` or `kill`."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        log_path: Path,
        *,
        on_event: Callable[[Event], None],
        on_end: Callable[[int], None],
    ) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._log_path = log_path
        self._on_event = on_event
        self._on_end = on_end
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._buffer = b""

    @classmethod
    def spawn(
        cls,
        command: Callable[[int], Sequence[str]],
        log_path: Path,
        *,
        on_event: Callable[[Event], None],
        on_end: Callable[[int], None],
        env: Mapping[str, str] | None = None,
        is_told: bool = False,
    ) -> ChildProcess:
        """Start what `command` returns for the descriptor the child writes event lines (JSON objects) to.

        With `is_told` it reads lines from its standard input, see `tell`.
        stdout and stderr are appended to `log_path`. `on_event` hears each event, `on_end` the exit code (negative for
        a signal), after the last event and once what the child left behind is killed. Raises OSError.
        """
        log_path.parent.mkdir(parents=True, exist_ok=True)
        events_in, events_out = os.pipe()
        try:
            with log_path.open("ab") as log:
                popen = subprocess.Popen(
                    command(events_out),
                    stdin=subprocess.PIPE if is_told else subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=env,
                    pass_fds=(events_out,),
                    start_new_session=True,
                )
        except OSError:
            os.close(events_in)
            raise
        finally:
            os.close(events_out)
        child = cls(popen, log_path, on_event=on_event, on_end=on_end)
        child._watch(events_in)
        return child

    def tell(self, command: Event) -> None:
        """Write one command line, a JSON object; one that has ended, or does not read, is told nothing."""
        if self._popen.stdin is None or self._exited.done():
            return
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            os.write(self._popen.stdin.fileno(), json.dumps(command).encode() + b"\n")

    async def exited(self) -> int:
        """Wait for the end; return the exit code, negative for a signal."""
        return await asyncio.shield(self._exited)

    async def stop(self, grace_s: float) -> int:
        """Send SIGTERM, and kill after `grace_s`; return the exit code. Idempotent."""
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError):
                self._popen.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                return await self.exited()
        except TimeoutError:
            self.kill()
            return await self.exited()

    def kill(self) -> None:
        """Kill the child and its session at once; idempotent."""
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def tree_pids(self) -> tuple[int, ...]:
        """List the child and every process below it that is alive, the child first."""
        return process_tree(self.pid)

    def last_log_lines(self, count: int) -> list[str]:
        """Return up to `count` last lines of the log."""
        with contextlib.suppress(OSError), self._log_path.open("rb") as log:
            log.seek(max(self._log_path.stat().st_size - _TAIL_BYTES, 0))
            return list(collections.deque(log.read().decode(errors="replace").splitlines(), maxlen=count))
        return []

    def _watch(self, events_fd: int) -> None:
        loop = asyncio.get_running_loop()
        os.set_blocking(events_fd, False)
        if self._popen.stdin is not None:
            os.set_blocking(self._popen.stdin.fileno(), False)
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
            self._on_event(json.loads(line))

    def _reap(self, pidfd: int, events_fd: int) -> None:
        """Take the exit code, after killing what the child left behind: the group exists as long as it is a zombie."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(pidfd)
        os.close(pidfd)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        code = self._popen.wait()
        self._read_events(events_fd)
        loop.remove_reader(events_fd)
        os.close(events_fd)
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        self._on_end(code)
        self._exited.set_result(code)


def write_private(file: Path, text: str) -> None:
    """Write a file only its owner can read: a spec holds the cluster's token."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as stream:
        stream.write(text)


def process_tree(pid: int) -> tuple[int, ...]:
    """List a process and every one below it that is alive, itself first; empty when it is gone."""
    found = [pid] if _is_alive(pid) else []
    for one in found:
        found.extend(_children(one))
    return tuple(found)


def parent_of(pid: int) -> int:
    """Return the parent of a process that is there. Raises OSError."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


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
