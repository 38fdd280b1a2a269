"""`make torture`: hand-overs between real endpoints while everything breaks; exits with 1 if anything was not right.

Always checked: every byte that would be served, every free block for late writers, a bound on every hand-over, and at
the end that nothing is held, ledgers balance, and descriptors and memory are as they were.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from bench.torture.run import Plan, report, torture

TRANSPORTS = ("auto", "shm", "tcp", "grpc")


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m bench.torture", description=__doc__.partition("\n")[0])
    parser.add_argument("--handovers", type=int, default=20_000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transport", default="auto", choices=TRANSPORTS, help="as kv.transport")
    parser.add_argument("--faults", type=float, default=1.0, help="how much more likely each fault is than usual")
    parser.add_argument("--deaths", type=int, default=500, help="hand-overs from one death of an engine to the next")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    plan = Plan(chosen.handovers, chosen.at_once, chosen.seed, chosen.transport, chosen.faults, chosen.deaths)
    with tempfile.TemporaryDirectory(prefix="baton-torture-") as run_dir:
        outcome = torture(plan, Path(run_dir), tell=lambda line: sys.stderr.write(f"{line}\n"))
    sys.stdout.write("\n".join(report(plan, outcome)) + "\n")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
