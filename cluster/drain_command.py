"""`baton drain`: let a worker finish what runs, end it, and have its pool one smaller or the worker replaced.

Owns flags and words. What a drain does is the controller's matter.
"""

from __future__ import annotations

import argparse

from cluster.running import running_cluster
from cluster.worker_progress import follow_worker

DESCRIPTION = "worker as `status` names it, e.g. decode-1"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `drain`."""
    parser.add_argument("worker", metavar="WORKER", help=DESCRIPTION)
    parser.add_argument(
        "--timeout", metavar="S", type=float, dest="timeout_s", help="end it after S seconds whatever runs (no limit)"
    )
    parser.add_argument("--replace", action="store_true", help="start it anew; else its pool is one smaller")
    parser.add_argument("--no-wait", action="store_true", help="return at once; `status` shows how it goes on")


def run(options: argparse.Namespace) -> int:
    """Do `baton drain`; return 0 once the worker is gone, or ready again.

    Raises ConfigError for a worker that cannot be drained.
    """
    with running_cluster() as cluster:
        epoch = cluster.ask("drain", options.worker, options.timeout_s, options.replace)
        what = "replaced" if options.replace else "drained and gone"
        return follow_worker(cluster, options, epoch, asked=f"{options.worker} drains", done=what)
