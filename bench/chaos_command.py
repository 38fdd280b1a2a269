"""`baton chaos run`: does a cluster keep what it promises while it is broken?

Owns the flags, the guard and where the report goes. By default it starts a cluster of its own from the configuration,
breaks that and ends it; `--running` breaks the one that runs from this checkout, and only with `--yes`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from bench.chaos.faults import SUITES, Fault, Scene
from bench.chaos.report import as_json, markdown, passed
from bench.chaos.suite import Result, Suite
from bench.chaos.target import Target, running, started
from bench.chaos.traffic import Traffic, make_load
from bench.result_file import write_result
from core.command_flags import add_config
from core.config.load import load_config
from core.errors import ConfigError

OK: Final = 0
NOT_KEPT: Final = 3
RECOVERY_S: Final = 180.0
# Of a cluster of its own: two workers of each role, a port of its own, hand-overs that may be broken.
_OWN: Final = (
    "router.port=0",
    "pools.prefill.replicas=2",
    "pools.decode.replicas=2",
    "pools.prefill.cpus=0.5",  # so that four workers find room on a small machine
    "pools.decode.cpus=0.5",
    "kv.allow_faults=true",
    "ray.address=local",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `chaos`."""
    parser.add_argument("action", choices=("run", "list"), help="run a suite, or list its faults")
    add_config(parser, optional=True)
    parser.add_argument("--suite", choices=tuple(SUITES), default="pd", help="which faults (default: pd)")
    parser.add_argument("--fault", metavar="NAME", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="how often each is made (default: 3)")
    parser.add_argument("--clients", metavar="N", type=int, default=4, help="streams at a time (default: 4)")
    parser.add_argument("--tokens", metavar="N", type=int, default=48, help="output tokens of a request (default: 48)")
    parser.add_argument("--deadline", metavar="S", type=float, default=60.0, help="for one request (default: 60)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of all chance (default: 0)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the table as Markdown too")
    parser.add_argument("--running", action="store_true", help="break the cluster that runs from this checkout")
    parser.add_argument("--yes", action="store_true", help="with --running: its users will feel it, do it all the same")


def run(options: argparse.Namespace) -> int:
    """Do `baton chaos`; return 0 if all was kept, 3 if not. Raises ConfigError, StartFailed."""
    faults = _chosen(options.suite, options.fault)
    if options.action == "list":
        listed = [{"name": fault.name, "what": fault.what} for fault in faults]
        lines = [f"{fault.name:<22}{fault.what}" for fault in faults]
        _say(json.dumps(listed, indent=2) if options.as_json else "\n".join(lines))
        return OK
    if options.running:
        if not options.yes:
            raise ConfigError("--running kills and freezes processes of a cluster in use; add --yes if that is wanted")
        results = asyncio.run(_break(running(os.environ), faults, options))
    else:
        load_config(options.config, overrides=(*_OWN, *options.overrides), environ=os.environ)  # before all else
        with (
            tempfile.TemporaryDirectory(prefix="baton-chaos-") as folder,
            started(options.config, (*_OWN, *options.overrides), Path(folder)) as target,
        ):
            results = asyncio.run(_break(target, faults, options))
    table = markdown(results, f"`baton chaos run --suite {options.suite} --rounds {options.rounds}`")
    if options.out is not None:
        write_result("--out", options.out, table)
    _say(json.dumps(as_json(results), indent=2) if options.as_json else table)
    return OK if passed(results) else NOT_KEPT


async def _break(target: Target, faults: tuple[Fault, ...], options: argparse.Namespace) -> list[Result]:
    began_s = time.monotonic()

    def say(words: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began_s:6.1f} s  {words}\n")
        sys.stderr.flush()

    load = make_load(
        num_prompts=24,
        max_tokens=options.tokens,
        num_clients=options.clients,
        deadline_s=options.deadline,
        seed=options.seed,
    )
    traffic = Traffic(target.front, target.model, load, seed=options.seed)
    try:
        say(f"learning {len(load.prompts)} answers")
        await traffic.learn()
        scene = Scene(target, traffic, random.Random(options.seed))
        return await Suite(scene, recovery_s=RECOVERY_S, say=say).run(faults, options.rounds)
    finally:
        await traffic.close()


def _chosen(suite: str, names: list[str]) -> tuple[Fault, ...]:
    known = {fault.name: fault for fault in SUITES[suite]}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--fault: {unknown[0]!r} is not in the suite {suite}; it has {', '.join(known)}")
    return tuple(known[name] for name in names) if names else tuple(known.values())


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip() + "\n")
