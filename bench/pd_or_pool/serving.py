"""One stay: a system is started, asked every part once, and stopped; what its client saw is kept in a file.

Owns what a part is and the file's form. Must not judge.
"""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import uvloop
from numpy.typing import NDArray

from bench.pd_or_pool import cases
from bench.serving.datasets import RANDOM, TRACE, DatasetSpec
from bench.serving.endpoint import Endpoint
from bench.serving.load_run import LoadRun, Run, RunOptions
from bench.serving.load_shape import LoadShape
from bench.serving.progress import Progress
from bench.serving.session import BenchSpec, Session, opened
from bench.serving.target import Target, reached
from sim.workload import Workload

_TIMEOUT_S: Final = 60.0  # of one request: an overloaded part must end
_FEWEST: Final = 12  # requests of a part
_WARM_UP: Final = BenchSpec(
    DatasetSpec(RANDOM, num_requests=8, input_tokens=300, output_tokens=16),
    LoadShape(max_concurrency=4),
    RunOptions(_TIMEOUT_S),
)


@dataclass(frozen=True, slots=True)
class Part:
    """One workload at one rate, the same requests for every system."""

    workload: str
    rate: float
    count: int
    seed: int

    def requests(self) -> Workload:
        """Make the requests."""
        return cases.make(self.workload, rate=self.rate, count=self.count, seed=self.seed)

    def write(self, folder: Path) -> Path:
        """Write the requests as a trace; return its file."""
        made = self.requests()
        file = folder / f"{cases.WORKLOADS.index(self.workload)}-{self.rate:g}-{self.seed}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8", newline="") as out:
            rows = csv.writer(out)
            rows.writerow(("arrived_s", "prompt_tokens", "output_tokens"))
            rows.writerows(
                zip(made.arrived_s.tolist(), made.prompt_tokens.tolist(), made.output_tokens.tolist(), strict=True)
            )
        return file


@dataclass(frozen=True, slots=True)
class Seen:
    """What the client saw of one part, an entry for each request in order of time; nan where no whole answer came."""

    workload: str
    rate: float
    ttft_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]
    longest_gap_ms: tuple[float, ...]  # between two tokens
    problems: tuple[str, ...]  # of the client, and the first error

    def kept(self, ttft_s: float, tpot_s: float, scale: float = 1.0) -> NDArray[np.bool_]:
        """Say which requests met both targets times `scale`."""
        ttft, tpot = np.array(self.ttft_ms), np.array(self.tpot_ms)
        found: NDArray[np.bool_] = (ttft <= 1e3 * ttft_s * scale) & (tpot <= 1e3 * tpot_s * scale)  # nan never is
        return found


def parts_of(rates: dict[str, tuple[float, ...]], *, seconds: float, turn: int) -> list[Part]:
    """List the parts of one turn, each of `seconds` of arrivals but of a few requests at least."""
    return [
        Part(workload, rate, max(_FEWEST, round(rate * seconds)), 100 * turn + number)
        for workload, each in rates.items()
        for number, rate in enumerate(each)
    ]


def stay(target: Target, parts: Sequence[Part], file: Path) -> None:
    """Start the system, serve every part, and write what was seen. Raises StartFailed, ConfigError.

    When it is interrupted, the parts that are done are written too, to a file of their own.
    """
    done: list[Seen] = []
    try:
        with reached(target) as endpoint, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            for seen in _each(runner, endpoint, target.name, parts, file.parent / "traces"):
                done.append(seen)
    except BaseException:
        write(file.with_suffix(".interrupted"), done)
        raise
    write(file, done)


def _each(runner: asyncio.Runner, endpoint: Endpoint, name: str, parts: Sequence[Part], traces: Path) -> Iterator[Seen]:
    for number, part in enumerate(parts, 1):
        _say(f"{name}: {number}/{len(parts)}, {part.workload} at {part.rate:g} requests/s")
        run = runner.run(_serve(endpoint, part, traces, warms_up=number == 1))
        yield _seen(part, run)


async def _serve(endpoint: Endpoint, part: Part, traces: Path, *, warms_up: bool) -> Run:
    spec = BenchSpec(
        DatasetSpec(TRACE, part.write(traces), num_requests=part.count, text_seed=part.seed),
        LoadShape(keeps_times=True),
        RunOptions(_TIMEOUT_S, seed=part.seed),
    )
    async with opened(endpoint) as session, Progress(sys.stderr, {}) as progress:
        if warms_up:
            await _load(session, _WARM_UP, progress)
        return await _load(session, spec, progress)


async def _load(session: Session, spec: BenchSpec, progress: Progress) -> Run:
    requests, _, _ = await session.requests(spec)
    load = LoadRun(session.pool, requests, spec.shape, spec.options)
    progress(load)
    return await load.run()


def _seen(part: Part, run: Run) -> Seen:
    errors = [t.error for t in run.timings if t.error]
    return Seen(
        part.workload,
        part.rate,
        tuple(t.ttft_ms if t.is_complete else float("nan") for t in run.timings),
        tuple(t.tpot_ms if t.is_complete else float("nan") for t in run.timings),
        tuple(max(t.itl_ms, default=0.0) if t.is_complete else float("nan") for t in run.timings),
        (*run.health.problems, *(f"{len(errors)} failed, the first: {error}" for error in errors[:1])),
    )


def write(file: Path, seen: Sequence[Seen]) -> None:
    """Keep what was seen in one stay."""
    rows = [
        {
            "workload": each.workload,
            "rate": each.rate,
            "ttft_ms": [_plain(x) for x in each.ttft_ms],
            "tpot_ms": [_plain(x) for x in each.tpot_ms],
            "longest_gap_ms": [_plain(x) for x in each.longest_gap_ms],
            "problems": each.problems,
        }
        for each in seen
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows), encoding="utf-8")


def read(file: Path) -> list[Seen]:
    """Read a stay again."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [
        Seen(
            row["workload"],
            row["rate"],
            _read_back(row["ttft_ms"]),
            _read_back(row["tpot_ms"]),
            _read_back(row["longest_gap_ms"]),
            tuple(row["problems"]),
        )
        for row in rows
    ]


def _read_back(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(float("nan") if value is None else value for value in values)


def _plain(value: float) -> float | None:
    return None if value != value else round(value, 3)


def _say(words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.stderr.flush()
