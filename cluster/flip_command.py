"""`baton flip`: have a running worker take the other role, its weights and cache staying where they are.

Owns flags and words. What a flip does is the controller's matter.
"""

from __future__ import annotations

import argparse

from cluster.drain_command import DESCRIPTION
from cluster.running import running_cluster
from cluster.worker_progress import follow_worker
from core.types import Role

WITHIN_S = 10.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `flip`."""
    parser.add_argument("worker", metavar="WORKER", help=DESCRIPTION)
    parser.add_argument("role", metavar="ROLE", choices=[role.value for role in Role], help="prefill or decode")
    parser.add_argument(
        "--within",
        metavar="S",
        type=float,
        dest="within_s",
        default=WITHIN_S,
        help="time that what runs has before the worker takes work of its new role beside it (default: %(default)g)",
    )
    parser.add_argument("--no-wait", action="store_true", help="return at once; `status` shows how it goes on")


def run(options: argparse.Namespace) -> int:
    """Do `baton flip`; return 0 once the worker is announced in its new role.

    Raises ConfigError for a worker that cannot change.
    """
    with running_cluster() as cluster:
        epoch = cluster.ask(
            "flip", options.worker, Role(options.role), options.within_s, "asked for on the command line"
        )
        asked = f"{options.worker} becomes a {options.role} worker"
        return follow_worker(cluster, options, epoch, asked=asked, done=f"a {options.role} worker")
