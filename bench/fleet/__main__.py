"""`python -m bench.fleet`: goodput for each GPU of 8 and 64 simulated H100 and H200, Baton beside others.

Owns flags, processes and progress. A scene that is done is kept in `--out`, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.fleet.goodput import Judged, Measured, measure
from bench.fleet.record import Run, SceneFound, SystemFound, file_of, read, write
from bench.fleet.report import picture, report
from bench.fleet.scenes import KV_GBIT_S, Scene, longest_of, scenes
from bench.fleet.systems import BATON, ONE_POOL_BATON, System, described, entries
from core.errors import ConfigError
from sim.plan import Verdict
from sim.search.goodput import resampled
from sim.workload import Workload

_OUT: Final = Path(".baton/bench-fleet")
_PLANNED: Final = {Verdict.ONE_POOL: ONE_POOL_BATON, Verdict.DISAGGREGATE: BATON}
_WHOLE = Run("", requests=2_000, draws=4, kv_gbit_s=KV_GBIT_S, chosen_on=1_200)
_QUICK = Run("", requests=1_500, draws=2, kv_gbit_s=KV_GBIT_S, chosen_on=600)


def find(scene: Scene, run: Run) -> SceneFound:
    """Choose everybody's pools, and measure them on every draw. Raises ConfigError for data that is not there."""
    began_s = time.process_time()
    data = Path(run.data) if run.data else None
    whole = scene.traffic.workload(data, requests=run.requests, longest=longest_of(scene.fleet))
    entry = entries(scene, whole.part(0, min(run.chosen_on, len(whole))), kv_gbit_s=run.kv_gbit_s)
    draws = resampled(whole, range(run.draws))
    systems = tuple(_measured(system, scene, draws) for system in entry.systems)
    planned = _PLANNED.get(entry.plan.verdict, "")
    return SceneFound(
        scene.fleet.name,
        scene.fleet.gpus,
        scene.traffic.name if data else f"{scene.traffic.recipe} (made up)",
        str(scene.promise),
        str(entry.plan.verdict),
        planned,
        systems,
        time.process_time() - began_s,
    )


def _measured(system: System, scene: Scene, draws: Sequence[Workload]) -> SystemFound:
    if system.cluster is None:
        return SystemFound(system.name, "", Measured((0.0,) * len(draws), ()))
    judged = Judged(system.cluster, scene.promise.targets, system.run)
    return SystemFound(system.name, described(system.cluster), measure(judged, draws, system.hint))


def find_all(
    wanted: Sequence[Scene], run: Run, out: Path, *, processes: int, minutes: float = math.inf
) -> list[SceneFound]:
    """Do what is not in `out` yet, in so many processes, and say how it goes; begin no scene after so many minutes."""
    began_s = time.monotonic()
    files = {scene: file_of(out, scene.name, run) for scene in wanted}
    missing = [scene for scene in wanted if not files[scene].exists()]
    _say(f"{len(wanted)} scenes, {len(wanted) - len(missing)} of them already in {out}")
    context = multiprocessing.get_context("spawn")  # numba's threads do not survive a fork
    with ProcessPoolExecutor(max(1, min(processes, len(missing))), mp_context=context) as pool:
        running = {pool.submit(find, scene, run): scene for scene in missing}
        try:
            for done, future in enumerate(as_completed(running), 1):
                if future.cancelled():
                    continue
                found, scene = future.result(), running[future]
                write(files[scene], found)
                taken_s = time.monotonic() - began_s
                left_s = taken_s / done * (len(missing) - done)
                _say(
                    f"{done}/{len(missing)}, {taken_s:.0f} s, about {left_s:.0f} s left: {scene.name}: {found.verdict}"
                )
                if taken_s > 60 * minutes:
                    pool.shutdown(wait=False, cancel_futures=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return _done(wanted, run, out)


def _done(wanted: Sequence[Scene], run: Run, out: Path) -> list[SceneFound]:
    return [found for scene in wanted if (found := read(file_of(out, scene.name, run))) is not None]


def main() -> int:
    """Run from the command line; under 10 minutes on two quiet cores."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, help="folder with the public traces in traces/ (default: made-up requests)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer requests and draws; 8 GPUs only")
    parser.add_argument("--only", default="", help="scenes whose name contains this, such as '8 x H100' or 'code'")
    parser.add_argument("--requests", type=int, help=f"of each trace ({_WHOLE.requests})")
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
        _say(f"bench.fleet: {exc}")
        return 2
    except KeyboardInterrupt:
        found = _done(wanted, run, options.out)
        _say(f"stopped with {len(found)} of {len(wanted)} scenes; the same command goes on from there")
    for line in report(found):
        sys.stdout.write(line + "\n")
    if options.plot:
        options.plot.write_text(picture(found), encoding="utf-8")
    return 0 if len(found) == len(wanted) else 130


def min_gpus() -> int:
    """Return the size of the small clusters."""
    return min(scene.fleet.gpus for scene in scenes())


def _say(words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
