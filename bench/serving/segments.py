"""The same requests for two systems, in turns: A B B A and so on, so that what changes with time hits both alike.

Owns the order, and that each side's turns are put together in the order of the trace. Must not compare.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import uvloop

from bench.serving.endpoint import Endpoint
from bench.serving.load_run import LoadRun, Run
from bench.serving.metrics import Metrics, measure
from bench.serving.progress import Progress
from bench.serving.session import BenchSpec, opened
from bench.serving.target import Target, reached
from core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Turn:
    """One segment of the trace on one side."""

    side: int  # 0 or 1
    segment: int


def order(segments: int) -> list[Turn]:
    """Give both sides every segment, the first side first in every other."""
    return [Turn(side, segment) for segment in range(segments) for side in ((0, 1) if segment % 2 == 0 else (1, 0))]


def stays(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    """Group the turns that follow each other on one side: a system is started once for each group."""
    for _, group in itertools.groupby(turns, key=lambda turn: turn.side):
        yield list(group)


@dataclass(frozen=True, slots=True)
class Side:
    """All of one side, in the order of the trace."""

    name: str
    run: Run
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Both:
    """Both sides of each benchmark; None: the two have no part in common, for it was interrupted before."""

    sides: tuple[tuple[Side, Side] | None, ...]
    is_interrupted: bool


def run_in_turns(targets: tuple[Target, Target], specs: Sequence[BenchSpec], segments: int) -> Both:
    """Serve `segments` parts of every benchmark on each side; return both sides of each benchmark.

    A part has as many requests as its benchmark's dataset. All benchmarks of a turn follow each other, so that a system
    that is started for its turns starts no more often for many of them. Ctrl-C ends it with the parts that both sides
    have served; raises KeyboardInterrupt when there is none.
    """
    found: dict[tuple[Turn, int], Run] = {}
    is_interrupted = False
    try:
        _serve_all(targets, specs, segments, found)
    except KeyboardInterrupt:
        is_interrupted = True
    sides = tuple(_both(targets, spec, number, found, segments) for number, spec in enumerate(specs))
    if not any(sides):
        raise KeyboardInterrupt
    return Both(sides, is_interrupted)


def _serve_all(
    targets: tuple[Target, Target], specs: Sequence[BenchSpec], segments: int, found: dict[tuple[Turn, int], Run]
) -> None:
    """Serve everything; `found` gets each part when it is done."""
    for group in stays(order(segments)):
        target = targets[group[0].side]
        with reached(target) as endpoint, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for turn in group:
                for number, spec in enumerate(specs):
                    _say(f"{target.name}: part {turn.segment + 1} of {segments} at {spec.shape.rate:g} requests/s")
                    found[turn, number] = runner.run(_serve(endpoint, spec, turn, segments))


def _both(
    targets: tuple[Target, Target],
    spec: BenchSpec,
    number: int,
    found: Mapping[tuple[Turn, int], Run],
    segments: int,
) -> tuple[Side, Side] | None:
    """Put the parts together that both sides have served."""
    parts = [part for part in range(segments) if all((Turn(side, part), number) in found for side in (0, 1))]
    if not parts:
        return None
    first, second = (
        _side(targets[side].name, [found[Turn(side, part), number] for part in parts], spec) for side in (0, 1)
    )
    return first, second


async def _serve(endpoint: Endpoint, spec: BenchSpec, turn: Turn, segments: int) -> Run:
    size = spec.dataset.num_requests
    dataset = replace(spec.dataset, num_requests=size * segments, text_seed=spec.dataset.text_seed + turn.side)
    options = replace(spec.options, seed=spec.options.seed + turn.segment)
    async with opened(endpoint) as session, Progress(sys.stderr, spec.targets) as progress:
        requests, source, _ = await session.requests(replace(spec, dataset=dataset))
        await session.warm_up(requests, spec)
        load = LoadRun(session.pool, requests, spec.shape, options)
        progress(load)
        size = min(size, (len(source) - spec.num_warmups) // segments)  # a trace may be shorter
        if not size:
            raise ConfigError(f"the dataset has {len(source)} requests, too few for {segments} parts")
        return await load.run(spec.num_warmups + turn.segment * size, size)


def _side(name: str, runs: Sequence[Run], spec: BenchSpec) -> Side:
    worst = max(runs, key=lambda run: run.health.lag_p99_ms)
    whole = Run(
        [timing for run in runs for timing in run.timings],
        sum(run.duration_s for run in runs),
        worst.health,
        runs[0].began_s,
    )
    return Side(name, whole, measure(whole, spec.targets, percentiles=spec.percentiles))


def _say(words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.stderr.flush()
