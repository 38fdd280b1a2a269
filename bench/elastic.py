"""Pools that follow the traffic, in simulation: `python -m bench.elastic {phases,day,step} --data DIR`.

Owns the command line. The settings are bench.elastic_phases, bench.elastic_day and bench.elastic_step.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from bench import elastic_day, elastic_phases, elastic_step

_SUITES: Mapping[str, Callable[[argparse.Namespace], Iterator[str]]] = MappingProxyType(
    {"phases": elastic_phases.run, "day": elastic_day.run, "step": elastic_step.run}
)


def main() -> int:
    """Run one of them from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.elastic", description="Measure pools that follow traffic.")
    parser.add_argument("suite", choices=sorted(_SUITES))
    parser.add_argument("--data", type=Path, required=True, help="folder with traces/")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the traffic (%(default)s)")
    parser.add_argument("--full", action="store_true", help="phases: the router's own policy, far slower")
    parser.add_argument("--check", action="store_true", help="phases and day: with the simulator's check in the loop")
    parser.add_argument("--plot", type=Path, help="write a picture of the first draw to this SVG file")
    options = parser.parse_args()
    for line in _SUITES[options.suite](options):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
