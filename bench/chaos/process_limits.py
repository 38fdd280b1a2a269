"""What a full disk, or too few descriptors or too little memory, is to a process: a limit of the kernel's on it.

Owns setting such limits on processes that run and taking them back. Must not know whose processes they are.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SPARE_DESCRIPTORS: Final = 2
_PROC: Final = Path("/proc")


def no_disk(pid: int) -> tuple[int, int]:
    """No file may grow: a write to one fails, as on a full disk."""
    return resource.RLIMIT_FSIZE, 0


def no_memory(pid: int) -> tuple[int, int]:
    """The process may map no more memory than it has."""
    pages = int((_PROC / str(pid) / "statm").read_text().split()[0])
    return resource.RLIMIT_AS, pages * resource.getpagesize()


def few_descriptors(pid: int) -> tuple[int, int]:
    """The process may open hardly another file or connection."""
    opened = max(int(name) for name in os.listdir(_PROC / str(pid) / "fd"))
    return resource.RLIMIT_NOFILE, opened + 1 + SPARE_DESCRIPTORS


@contextmanager
def limited(pids: Sequence[int], limit: Callable[[int], tuple[int, int]]) -> Iterator[None]:
    """Hold processes to a limit; those that end meanwhile need no mending."""
    before: list[tuple[int, int, tuple[int, int]]] = []
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                kind, most = limit(pid)
                _, hard = had = resource.prlimit(pid, kind)
                resource.prlimit(pid, kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
                before.append((pid, kind, had))
        yield
    finally:
        for pid, kind, had in before:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, kind, had)
