"""`baton apply`: have the cluster that runs become what a changed configuration says.

Owns flags, the checks of this machine, and words. What changes means is cluster.rollout's matter.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from cluster import preflight
from cluster.console import Console
from cluster.rollout import Rollout
from cluster.running import RunningCluster, running_cluster
from core.command_flags import add_config
from core.config.load import load_config
from core.config.models import BatonConfig
from core.config.specs import with_absolute_profile

WAIT_S: Final = 2.0  # the controller answers sooner when something changes
APPLY_S: Final = 60.0  # a router that gets new settings lets what runs finish first
FAILED: Final = 1


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `apply`."""
    add_config(parser, optional=False)
    parser.add_argument("--plan", action="store_true", dest="only_plan", help="say what would be done, and do nothing")
    parser.add_argument("--no-wait", action="store_true", help="return at once; `status` shows how it goes on")


def run(options: argparse.Namespace) -> int:
    """Do `baton apply`; return 0 once the cluster is what the file says, 1 when something stands in the way.

    Raises ConfigError for what is wrong, does not fit, or needs `down` and `up`.
    """
    config = load_config(options.config, overrides=options.overrides, environ=os.environ)
    return apply(config, only_plan=options.only_plan, no_wait=options.no_wait, as_json=options.as_json)


def apply(config: BatonConfig, *, only_plan: bool, no_wait: bool, as_json: bool) -> int:
    """Do `baton apply` with a configuration that was read; see `run`."""
    console = Console(as_json=as_json)
    base = Path.cwd()
    preflight.check_model(config, base)
    preflight.check_plan_files(config, base)
    if config.pools != "auto":
        preflight.check_policy(config, base)
    with running_cluster() as cluster:
        absolute = with_absolute_profile(config, base)
        rollout: Rollout = cluster.ask("apply", absolute, str(base), only_plan, wait_s=APPLY_S)
        for line in rollout.lines or ("nothing to do: the cluster is what the file says",):
            console.stage("apply", line)
        waits = ""
        if rollout.lines and not only_plan and not no_wait:
            waits = _wait(cluster, console)
            console.stage("apply", waits or "done")
    console.result({"ok": not waits, "changes": list(rollout.lines), "waits": waits})
    return FAILED if waits else 0


def _wait(cluster: RunningCluster, console: Console) -> str:
    """Wait until all is done; return what stands in the way, empty if nothing does."""
    events = cluster.ask("events_after", 0, 0.0)
    last_number = events[-1].number if events else 0
    while left := str(cluster.ask("settled", WAIT_S, wait_s=WAIT_S)):
        events = cluster.ask("events_after", last_number, 0.0)
        console.events(events)
        last_number = events[-1].number if events else last_number
        if "halts" in left:
            return left
    return ""
