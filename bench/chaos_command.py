"""`baton chaos run` and `soak`: does a cluster keep what it promises while it is broken?

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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.chaos.faults import SUITES, Fault, Scene
from bench.chaos.links import enter_own_network
from bench.chaos.report import as_json, markdown, passed
from bench.chaos.soak import Soak, soak_report
from bench.chaos.suite import Suite
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
    "healing.max_failures=1000",  # a worker that is killed every few seconds on purpose is not to be set aside,
    "healing.max_delay_s=2",  # nor waited for as one that fails by itself
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `chaos`."""
    parser.add_argument(
        "action",
        choices=("run", "soak", "list"),
        help="run a suite fault by fault; soak: at random, for long; list its faults",
    )
    add_config(parser, optional=True)
    parser.add_argument("--suite", choices=tuple(SUITES), default="pd", help="which faults (default: pd)")
    parser.add_argument("--fault", metavar="NAME", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="how often each is made (default: 3)")
    parser.add_argument("--minutes", metavar="M", type=float, default=30.0, help="length of a soak (default: 30)")
    parser.add_argument("--every", metavar="S", type=float, default=20.0, help="time between its faults (default: 20)")
    parser.add_argument("--clients", metavar="N", type=int, default=4, help="streams at a time (default: 4)")
    parser.add_argument("--tokens", metavar="N", type=int, default=48, help="output tokens of a request (default: 48)")
    parser.add_argument("--deadline", metavar="S", type=float, default=60.0, help="for one request (default: 60)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of all chance (default: 0)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the table as Markdown too")
    parser.add_argument(
        "--own-network", action="store_true", help="in a network namespace, so that links can be slowed (needs root)"
    )
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
        return _tell(asyncio.run(_break(running(os.environ), faults, options)), options)
    if options.own_network:
        enter_own_network()
    load_config(options.config, overrides=(*_OWN, *options.overrides), environ=os.environ)  # before all else
    with (
        tempfile.TemporaryDirectory(prefix="baton-chaos-") as folder,
        started(options.config, (*_OWN, *options.overrides), Path(folder)) as target,
    ):
        return _tell(asyncio.run(_break(target, faults, options)), options)  # before it ends, which takes its time


def _tell(outcome: _Outcome, options: argparse.Namespace) -> int:
    if options.out is not None:
        write_result("--out", options.out, outcome.table)
    _say(json.dumps(outcome.values, indent=2) if options.as_json else outcome.table)
    return OK if outcome.is_kept else NOT_KEPT


@dataclass(frozen=True, slots=True)
class _Outcome:
    table: str
    values: dict[str, object]
    is_kept: bool


async def _break(target: Target, faults: tuple[Fault, ...], options: argparse.Namespace) -> _Outcome:
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
        is_own_network = options.own_network and not options.running
        may_lose_nodes = "lose-node" in options.fault
        scene = Scene(target, traffic, random.Random(options.seed), is_own_network, may_lose_nodes)
        return await (_soak if options.action == "soak" else _run)(scene, faults, options, say)
    finally:
        await traffic.close()


async def _run(
    scene: Scene, faults: tuple[Fault, ...], options: argparse.Namespace, say: Callable[[str], None]
) -> _Outcome:
    results = await Suite(scene, recovery_s=RECOVERY_S, say=say).run(faults, options.rounds)
    table = markdown(results, f"`baton chaos run --suite {options.suite} --rounds {options.rounds}`")
    return _Outcome(table, as_json(results), passed(results))


async def _soak(
    scene: Scene, faults: tuple[Fault, ...], options: argparse.Namespace, say: Callable[[str], None]
) -> _Outcome:
    result = await Soak(scene, say=say).run(faults, seconds=60 * options.minutes, every_s=options.every)
    values = {"ok": not result.failures(), "answers": dict(result.answers), "faults": dict(result.faults)}
    return _Outcome(soak_report(result), values | {"failures": result.failures()}, not result.failures())


def _chosen(suite: str, names: list[str]) -> tuple[Fault, ...]:
    known = {fault.name: fault for fault in SUITES[suite]}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"--fault: {unknown[0]!r} is not in the suite {suite}; it has {', '.join(known)}")
    return tuple(known[name] for name in names) if names else tuple(known.values())


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip() + "\n")
