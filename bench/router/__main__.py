"""`python -m bench.router [compare|decision|soak]`: the router beside others, its decisions alone, its memory in time.

Owns the command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.router.compare import PEERS_FOLDER, Plan, compare
from bench.router.decision import decisions, decisions_report
from bench.router.figures import TESTS, Results, Taken
from bench.router.peers import PEERS
from bench.router.report import report
from bench.router.site import Cores, SiteFailed
from bench.router.soak import Soak, soak, soak_report
from core.errors import BatonError


def main(words: Sequence[str]) -> int:
    """Run one of the three; 1 for what went wrong, with the reason."""
    arguments = _parser().parse_args(words)
    cores = Cores(None, None) if arguments.unpinned else Cores(arguments.router_core, arguments.load_core)
    cores = Cores(cores.router, cores.load, arguments.nice)
    try:
        if arguments.what == "decision":
            measured = [decisions(policy, arguments.workers) for policy in arguments.policy]
            _write(decisions_report(measured, arguments.workers))
        elif arguments.what == "soak":
            plan = Soak(
                cores, arguments.minutes * 60, arguments.connections, arguments.prompt_bytes, arguments.policy[0]
            )
            _write(soak_report(plan, soak(plan)))
        else:
            _compare(arguments, cores)
    except (SiteFailed, BatonError) as exc:
        sys.stderr.write(f"bench.router: {exc}\n")
        return 1
    return 0


def _compare(arguments: argparse.Namespace, cores: Cores) -> None:
    plan = Plan(
        cores,
        arguments.rounds,
        arguments.seconds,
        calm_s=arguments.calm,
        policy=arguments.policy[0],
        tests=[test for test in TESTS if arguments.only is None or test.name in arguments.only],
        peers=() if arguments.no_peers else PEERS,
        peers_folder=arguments.peers_venv,
    )
    taken, notes = compare(plan)
    if arguments.out is not None:
        _keep(taken, arguments.out)
    _write(report(Results(taken), cores=cores, seconds=plan.seconds, notes=notes))


def _keep(taken: Iterable[Taken], file: Path) -> None:
    """Append what was taken, one line of JSON each."""
    with file.open("a") as lines:
        lines.writelines(json.dumps(asdict(each)) + "\n" for each in taken)


def _write(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.router", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("compare", "decision", "soak"), default="compare")
    parser.add_argument("--policy", nargs="+", default=["slo-aware"], help="Baton's policy; decision takes several")
    parser.add_argument("--unpinned", action="store_true", help="leave processes to any core")
    parser.add_argument("--router-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1, help="core of the client and of the mock engines")
    parser.add_argument("--nice", type=int, default=0, help="priority of all processes; below 0 needs privileges")
    compared = parser.add_argument_group("compare")
    compared.add_argument("--rounds", type=int, default=3)
    compared.add_argument("--seconds", type=float, default=2.0, help="length of one test")
    compared.add_argument("--calm", type=float, default=0.0, help="seconds that a test may wait for an idle machine")
    compared.add_argument("--only", nargs="+", choices=[test.name for test in TESTS], help="these tests")
    compared.add_argument("--no-peers", action="store_true")
    compared.add_argument("--peers-venv", type=Path, default=PEERS_FOLDER, help="where peers are installed")
    compared.add_argument("--out", type=Path, help="append every window as a line of JSON")
    deciding = parser.add_argument_group("decision")
    deciding.add_argument("--workers", type=int, default=64, help="of each role")
    soaking = parser.add_argument_group("soak")
    soaking.add_argument("--minutes", type=float, default=10.0)
    soaking.add_argument("--connections", type=int, default=32)
    soaking.add_argument("--prompt-bytes", type=int, default=4000)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
