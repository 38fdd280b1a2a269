"""Processes of a cluster that no list of members names, whose a process is, and what it holds.

Owns reading /proc.
"""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.child import parent_of, process_tree

CONTROLLER_TITLE: Final = b"ray::Controller"  # that Ray gives the process
RAYLET: Final = b"/raylet/raylet"  # how the program ends that is a node of Ray
HEAD_RESOURCE: Final = b"node:__internal_head__"  # that Ray gives its head's node
_MODULES: Final = b"cluster."  # of Baton, that workers and routers are
_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds, and all below it."""

    rss_mb: float  # resident, MiB
    descriptors: int


def controller_of(pid: int) -> int | None:
    """Find the controller on the node of a process."""
    node = node_of(pid)
    below = () if node is None else process_tree(node)
    return next((one for one in below if _words(one)[0].startswith(CONTROLLER_TITLE)), None)


def is_baton(pid: int) -> bool:
    """Whether a process is a worker or a router; its number may be another process's on another machine."""
    return any(word.startswith(_MODULES) for word in _words(pid))


def node_of(pid: int) -> int | None:
    """Find the node process of Ray below which a process runs; None: there is none."""
    with contextlib.suppress(OSError):
        while pid > 1:
            if _words(pid)[0].endswith(RAYLET):
                return pid
            pid = parent_of(pid)
    return None


def is_head(node_pid: int) -> bool:
    """Whether a node process is that of Ray's head, with which the whole of Ray ends."""
    return any(HEAD_RESOURCE in word for word in _words(node_pid))


def usage_of(pid: int) -> Usage | None:
    """Read what a process and all below it hold, pages that they share counted for each; None when it is gone."""
    found = [usage for one in process_tree(pid) if (usage := _own_usage(one)) is not None]
    if not found:
        return None
    return Usage(sum(usage.rss_mb for usage in found), sum(usage.descriptors for usage in found))


def _own_usage(pid: int) -> Usage | None:
    with contextlib.suppress(OSError):
        pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
        descriptors = len(os.listdir(_PROC / str(pid) / "fd"))
        return Usage(pages * resource.getpagesize() / (1 << 20), descriptors)
    return None


def _words(pid: int) -> list[bytes]:
    """Read the words a process was started with, or the title it has given itself; one empty word if it is gone."""
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    return [b""]
