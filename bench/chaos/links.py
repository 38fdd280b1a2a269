"""Connections that are cut and links that are slow, by what Linux has for it.

Owns the commands. Slowing a link slows it for all who use it, so that is done only in a network namespace of one's own.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from core.errors import BatonError, ConfigError

SLOW_RATE: Final = "4mbit"  # of all traffic together: a prompt's KV of the demonstration model takes seconds
_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_COMMAND_S: Final = 10.0


class CannotCut(BatonError):
    """This user or this system cannot."""

    name = "cannot_cut"


def enter_own_network() -> None:
    """Have this process, and all it starts from now on, be in a network of their own, with nothing but a loopback.

    Call it before there are threads. Raises ConfigError when this user may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        why = os.strerror(ctypes.get_errno())
        raise ConfigError(f"--own-network: no network namespace can be made ({why}); run as root, or without it")
    _run("ip", "link", "set", "lo", "up")


def cut_connections(ports: Sequence[int]) -> None:
    """Break every TCP connection to these ports of this machine, as a router between two machines that restarts.

    Raises CannotCut.
    """
    for port in ports:
        _run("ss", "--kill", "--tcp", "dport", "=", str(port))


@contextmanager
def slow_links() -> Iterator[None]:
    """Slow the loopback of the network this process is in. Raises CannotCut."""
    _run("tc", "qdisc", "replace", "dev", "lo", "root", "tbf", "rate", SLOW_RATE, "burst", "64kb", "latency", "400ms")
    try:
        yield
    finally:
        _run("tc", "qdisc", "del", "dev", "lo", "root")


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CannotCut(f"{command[0]}: {exc}") from exc
    if done.returncode:
        raise CannotCut(f"{' '.join(command)}: {done.stderr.strip()}")
