"""How a command waits for what it asked of a worker, and what it prints meanwhile.

Owns wording and the exit code.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from typing import Final

from cluster.console import Console
from cluster.running import RunningCluster
from core.types import Role

WAIT_S: Final = 2.0  # the controller answers sooner when something changes


@dataclass(frozen=True, slots=True)
class WorkerProgress:
    """How far a worker is with what was asked of it."""

    is_done: bool
    role: Role | None  # None: it is gone
    state: str
    epoch: int
    reason: str
    took_s: float | None = None  # of what was asked, since the controller was asked; None: it is not done, or not told


def follow_worker(cluster: RunningCluster, options: argparse.Namespace, epoch: int, *, asked: str, done: str) -> int:
    """Print how a worker goes on until what was asked of it in `epoch` is done; return 0.

    With `no_wait`, return at once. An interrupt leaves the worker to it.
    """
    console = Console(as_json=options.as_json)
    console.stage(options.worker, asked)
    began_s = time.monotonic()
    if options.no_wait:
        console.result({"ok": True, "worker": options.worker, "is_done": False})
        return 0
    told = ""
    try:
        while True:
            found: WorkerProgress = cluster.ask("progress_of", options.worker, epoch, WAIT_S, wait_s=WAIT_S)
            if found.is_done:
                break
            words = found.state + (f" ({found.reason})" if found.reason else "")
            if words != told:
                console.stage(options.worker, words)
                told = words
    except KeyboardInterrupt:
        console.line("it goes on without this command; `status` shows it")
        raise
    took_s = round(time.monotonic() - began_s if found.took_s is None else found.took_s, 3)
    console.stage(options.worker, f"{done}, {took_s:.1f} s after it was asked for")
    console.result({"ok": True, "worker": options.worker, **asdict(found), "took_s": took_s})
    return 0
