"""What one decision costs, by the number of workers: the pure part, with the simulator's check in it, and beside it.

Owns the setting. CPU time of the thread that decides, the median and the most of many decisions of the same traffic.
Live, the check is beside: on a thread of its own, and its answer is in force from a later decision on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from bench.elastic_scene import TARGETS, Lengths, azure, cluster, service
from core.control.actions import ClassReport, Observation, PoolSizes, RequestSample, SizeLimits, WorkerReport
from core.control.decider import Settings, SizingDecider
from core.types import Role
from sim.control_check import SimulatedSizes

_WORKERS: Final = (16, 64, 256)
_ROUNDS: Final = 40
_EVERY_S: Final = 5.0
_SAMPLES: Final = 512
_RATE_PER_WORKER: Final = 10.0


def run(options: argparse.Namespace) -> Iterator[str]:
    """Time decisions, and write the table in Markdown."""
    lengths, spec = azure(options.data, "conversations"), cluster()
    yield "| workers | decision, ms | most | the simulator's check in it, ms | most | the check beside it, ms | most |"
    yield "|---|---|---|---|---|---|---|"
    for workers in _WORKERS:
        settings = Settings(most_workers=workers)
        pure = _timed(SizingDecider(service(spec), settings), workers, lengths)
        checked = _timed(SizingDecider(service(spec), settings, SimulatedSizes(spec)), workers, lengths)
        with ThreadPoolExecutor(1) as executor:
            apart = _timed(SizingDecider(service(spec), settings, SimulatedSizes(spec), executor), workers, lengths)
        cells = [f"{value:.1f}" for times in (pure, checked, apart) for value in (np.median(times), max(times))]
        yield f"| {workers} | {' | '.join(cells)} |"


def _timed(decider: SizingDecider, workers: int, lengths: Lengths) -> list[float]:
    rng, times = np.random.default_rng(0), []
    for number in range(1, _ROUNDS + 1):
        # The load swings, so that the estimate changes and is checked anew.
        rate = _RATE_PER_WORKER * workers * (1.0 + 0.3 * np.sin(number / 3))
        seen = _observation(number * _EVERY_S, workers, int(rate * _EVERY_S), lengths, rng)
        began_s = time.thread_time()
        decider.decide(seen)
        times.append(1e3 * (time.thread_time() - began_s))
    return times[2:]  # the first ones compile


def _observation(now_s: float, workers: int, arrived: int, lengths: Lengths, rng: np.random.Generator) -> Observation:
    prompts, outputs = (column.tolist() for column in lengths.drawn(rng, _SAMPLES))
    half = workers // 2
    roles = [Role.PREFILL] * half + [Role.DECODE] * half
    target = TARGETS[0]
    return Observation(
        now_s=now_s,
        window_s=_EVERY_S,
        wanted=PoolSizes(half, half),
        limits=SizeLimits(PoolSizes(1, 1), PoolSizes(workers - 1, workers - 1)),
        workers=tuple(WorkerReport(f"w{i:03}", role, "ready", 0.0, 0.0, 20) for i, role in enumerate(roles)),
        classes=(ClassReport(target.name, target.ttft_s, target.tpot_s, 0.9, arrived, arrived, arrived, 0),),
        samples=tuple(
            RequestSample(now_s - 4, target.name, prompt, 0, output, 0.2, 0.01, 0.0, True, "ok")
            for prompt, output in zip(prompts, outputs, strict=True)
        ),
        num_ended=arrived,
        num_held=0,
        held_tokens=0,
        least_slack_s=None,
        start_s=120.0,
        flip_s=3.0,
        is_changing=False,
    )
