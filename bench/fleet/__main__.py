"""`python -m bench.fleet`: goodput for each GPU of 8 and 64 simulated H100 and H200, Baton beside others.

Owns flags and how much is simulated. A scene that is done is kept in `--out`, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.fleet.measuring import done, find_all, say
from bench.fleet.record import Run
from bench.fleet.report import picture, report
from bench.fleet.scenes import KV_GBIT_S, scenes
from core.errors import ConfigError

_OUT: Final = Path(".baton/bench-fleet")
_WHOLE = Run("", requests=1_000, draws=5, kv_gbit_s=KV_GBIT_S, chosen_on=1_000)
_QUICK = Run("", requests=500, draws=3, kv_gbit_s=KV_GBIT_S, chosen_on=400)


def main() -> int:
    """Run from the command line; under 10 minutes on two quiet cores."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, help="folder with the public traces in traces/ (default: made-up requests)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer requests and draws; 8 GPUs only")
    parser.add_argument("--only", default="", help="scenes whose name contains this, such as '8 x H100' or 'code'")
    parser.add_argument("--requests", type=int, help=f"of each trace; more of short ones ({_WHOLE.requests})")
    parser.add_argument("--draws", type=int, help=f"of the requests, the trace itself among them ({_WHOLE.draws})")
    parser.add_argument("--kv-gbit-s", type=float, default=KV_GBIT_S, help="to send KV by, each GPU (%(default)g)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no scene after that; a rerun goes on")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="%(default)s")
    parser.add_argument("--out", type=Path, default=_OUT, help="folder for what is done (%(default)s)")
    parser.add_argument("--plot", type=Path, help="write a picture of all scenes to this SVG file")
    options = parser.parse_args()
    run = _QUICK if options.quick else _WHOLE
    run = replace(
        run,
        data=str(options.data or ""),
        requests=options.requests or run.requests,
        draws=options.draws or run.draws,
        kv_gbit_s=options.kv_gbit_s,
    )
    wanted = [scene for scene in scenes(options.only) if not options.quick or scene.fleet.gpus == min_gpus()]
    try:
        found = find_all(wanted, run, options.out, processes=options.processes, minutes=options.minutes)
    except ConfigError as exc:
        say(f"bench.fleet: {exc}")
        return 2
    except KeyboardInterrupt:
        found = done(wanted, run, options.out)
        say(f"stopped with {len(found)} of {len(wanted)} scenes; the same command goes on from there")
    for line in report(found):
        sys.stdout.write(line + "\n")
    if options.plot:
        options.plot.write_text(picture(found), encoding="utf-8")
    return 0 if len(found) == len(wanted) else 130


def min_gpus() -> int:
    """Return the size of the small clusters."""
    return min(scene.fleet.gpus for scene in scenes())


if __name__ == "__main__":
    sys.exit(main())
