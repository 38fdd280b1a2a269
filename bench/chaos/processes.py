"""Processes of a cluster that no list of members names, and what a process holds.

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
_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process holds."""

    rss_mb: float  # resident, MiB
    descriptors: int


def controller_of(worker_pid: int) -> int | None:
    """Find the controller on the node of a worker, whose parent is its actor, whose parent is the node's process."""
    with contextlib.suppress(OSError):
        node = parent_of(parent_of(worker_pid))
        return next((pid for pid in process_tree(node) if _title(pid).startswith(CONTROLLER_TITLE)), None)
    return None


def usage_of(pid: int) -> Usage | None:
    """Read what a process holds; None when it is gone."""
    with contextlib.suppress(OSError):
        pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
        descriptors = len(os.listdir(_PROC / str(pid) / "fd"))
        return Usage(pages * resource.getpagesize() / (1 << 20), descriptors)
    return None


def _title(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_bytes()
    return b""
