"""One scene after another, in several processes: pools chosen, goodput measured, kept in files.

Owns the order and the processes. Must not know flags or wording of results.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

from bench.fleet.goodput import Judged, Measured, measure
from bench.fleet.record import Run, SceneFound, SystemFound, file_of, read, write
from bench.fleet.scenes import Scene, longest_of
from bench.fleet.systems import BATON, ONE_POOL_BATON, System, described, enter
from sim.plan import Plan, Verdict
from sim.search.goodput import resampled
from sim.workload import Workload


def find(scene: Scene, run: Run) -> SceneFound:
    """Choose everybody's pools, and measure them on every draw. Raises ConfigError for data that is not there."""
    began_s = time.process_time()
    data = Path(run.data) if run.data else None
    requests, chosen_on = (round(scene.traffic.times * count) for count in (run.requests, run.chosen_on))
    whole = scene.traffic.workload(data, requests=requests, longest=longest_of(scene.fleet))
    entry = enter(scene, whole.part(0, min(chosen_on, len(whole))), kv_gbit_s=run.kv_gbit_s)
    draws = resampled(whole, range(run.draws))
    systems = tuple(_measured(system, scene, draws) for system in entry.systems)
    return SceneFound(
        scene.fleet.name,
        scene.fleet.gpus,
        scene.traffic.name if data else f"{scene.traffic.recipe} (made up)",
        str(scene.promise),
        str(entry.plan.verdict),
        _planned(entry.plan),
        systems,
        time.process_time() - began_s,
        tuple(c.goodput.mid if c else 0.0 for c in (entry.plan.best_one_pool, entry.plan.best_disaggregated)),
    )


def _planned(plan: Plan) -> str:
    """Name the system that the planner chose; nothing where it keeps the promise with none."""
    if plan.verdict is Verdict.INFEASIBLE or plan.best is None:
        return ""
    return ONE_POOL_BATON if plan.best.cluster.prefill is None else BATON


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
    say(f"{len(wanted)} scenes, {len(wanted) - len(missing)} of them already in {out}")
    context = multiprocessing.get_context("spawn")  # numba's threads do not survive a fork
    with ProcessPoolExecutor(max(1, min(processes, len(missing))), mp_context=context) as pool:
        running = {pool.submit(find, scene, run): scene for scene in missing}
        left, number = set(running), 0
        try:
            while left:
                ended, left = wait(left, return_when=FIRST_COMPLETED)
                for future in ended:
                    number += 1
                    found, scene = future.result(), running[future]
                    write(files[scene], found)
                    taken_s = time.monotonic() - began_s
                    left_s = taken_s / number * (len(missing) - number)
                    say(f"{number}/{len(missing)}, {taken_s:.0f} s, about {left_s:.0f} s left: {_summary(found)}")
                if time.monotonic() - began_s > 60 * minutes:  # a cancelled one would be waited for in vain
                    left = {future for future in left if not future.cancel()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done(wanted, run, out)


def _summary(found: SceneFound) -> str:
    best = max(found.systems, key=lambda system: system.measured.goodput[0])
    return f"{found.name}: most with {best.name}; the planner says {found.verdict}"


def done(wanted: Sequence[Scene], run: Run, out: Path) -> list[SceneFound]:
    """Read the scenes that are there, in the order asked for."""
    return [found for scene in wanted if (found := read(file_of(out, scene.name, run))) is not None]


def say(words: str) -> None:
    """Tell whoever waits."""
    sys.stderr.write(words + "\n")
    sys.stderr.flush()
