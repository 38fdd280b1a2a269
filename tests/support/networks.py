"""Two networks of their own on this machine, joined by a cable that can be cut, as between two machines.

Needs root and Linux's network namespaces. The thread that opens them lives in the first, and so do the processes and
threads it starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FIRST, SECOND = "10.99.0.1", "10.99.0.2"
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_OWN = Path("/proc/thread-self/ns/net")


def can_make_networks() -> bool:
    """Whether this user may, and this kernel can."""
    try:
        with cable():
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@dataclass(frozen=True)
class Cable:
    """The connection between the two."""

    second: tuple[str, ...]  # before a command line: run it in the second network

    def cut(self) -> None:
        """Lose every packet from now on; no connection is closed."""
        _ip("link", "set", "baton0", "down")

    def mend(self) -> None:
        """Let packets through again."""
        _ip("link", "set", "baton0", "up")


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    """Enter the first of two joined networks; leave it, and end both, afterwards."""
    with contextlib.ExitStack() as stack:
        first, second = stack.enter_context(_network()), stack.enter_context(_network())
        stack.enter_context(_entered(first))
        inside = ("nsenter", f"--target={second}", "--net")
        _ip("link", "add", "baton0", "type", "veth", "peer", "name", "baton1", "netns", str(second))
        for prefix, name, address in (((), "baton0", FIRST), (inside, "baton1", SECOND)):
            _ip("link", "set", "lo", "up", prefix=prefix)
            _ip("address", "add", f"{address}/24", "dev", name, prefix=prefix)
            _ip("link", "set", name, "up", prefix=prefix)
        yield Cable(inside)


@contextlib.contextmanager
def _network() -> Iterator[int]:
    """Keep a network alive by a process in it; yield that process's id."""
    command = ["unshare", "--net", "--kill-child", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as held:
        try:
            deadline_s = time.monotonic() + 10
            while os.readlink(f"/proc/{held.pid}/ns/net") == os.readlink(_OWN):
                if held.poll() is not None or time.monotonic() > deadline_s:
                    raise OSError("no network namespace can be made")
                time.sleep(0.01)  # nothing tells of it
            yield held.pid
        finally:
            held.kill()


@contextlib.contextmanager
def _entered(pid: int) -> Iterator[None]:
    """Have this thread be in the network of a process."""
    before = os.open(_OWN, os.O_RDONLY)
    try:
        _set_network(Path(f"/proc/{pid}/ns/net"))
        yield
    finally:
        _set_network(Path(f"/proc/self/fd/{before}"))
        os.close(before)


def _set_network(file: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(file, os.O_RDONLY)
    try:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(fd)


def _ip(*words: str, prefix: tuple[str, ...] = ()) -> None:
    subprocess.run([*prefix, "ip", *words], check=True, capture_output=True)
