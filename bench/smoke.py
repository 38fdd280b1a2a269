"""`make bench-smoke`: Baton with one prefill and one decode core beside one vLLM engine on both cores, in one run.

Prints tables in Markdown for docs/benchmarks.md: start-up by stage, memory by process, idle CPU, hand-over cost,
what of the transfer was hidden, chats under long prompts, and how soon the engines rest after a client leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import yaml

from bench import procfs, stacks
from bench.load import LoadSession, Prompts, Timing, open_loop, open_session, quantile, stream_completion
from bench.stacks import Running

LENGTHS: Final = (64, 512, 1500)
REPEATS: Final = {64: 7, 512: 7, 1500: 5}
MIXED_S: Final = 20
CHATS_PER_S: Final = 3.0
LONG_GAPS_S: Final = (1.0, 2.0)
IDLE_S: Final = 10.0
SLO_TTFT_MS, SLO_TPOT_MS = 1000.0, 40.0
KV_MB: Final = 512


class Ask(Protocol):
    """Sends one completion to the system being measured."""

    def __call__(self, tokens: int, out: int, *, leave_after: int | None = None) -> Awaitable[Timing]:
        """Ask for `out` tokens after a prompt of `tokens`; hang up after `leave_after` of them."""
        ...


@dataclass(frozen=True, slots=True)
class Mixed:
    """Chats under long prompts."""

    chats: list[Timing]
    longs: list[Timing]
    cores: float


@dataclass
class Measured:
    """What one system showed in one pass."""

    name: str
    start_s: float
    stages: tuple[tuple[str, float], ...]
    memory: list[procfs.Process]
    idle_cores: float = 0.0
    ttft_ms: dict[int, list[float]] = field(default_factory=dict)  # by prompt tokens
    mixed: dict[float, Mixed] = field(default_factory=dict)  # by seconds between long prompts
    rest_s: float = 0.0
    overlap: dict[int, tuple[float, float]] = field(default_factory=dict)  # tokens -> (hidden share, exposed ms)


async def measure(running: Running, seed: int) -> Measured:
    """Take every figure of one system that is up."""
    async with open_session() as session:
        prompts = Prompts(seed)

        def ask(tokens: int, out: int, *, leave_after: int | None = None) -> Awaitable[Timing]:
            prompt = prompts.make(tokens)
            return stream_completion(session, running.url, prompt, model="m", max_tokens=out, leave_after=leave_after)

        for tokens in (40, 300, 1500, 64):
            await ask(tokens, 4)
        processes = procfs.tagged(running.tag)
        found = Measured(running.name, running.start_s, running.stages, processes)
        before_s = procfs.cpu_s(processes)
        await asyncio.sleep(IDLE_S)
        found.idle_cores = (procfs.cpu_s(processes) - before_s) / IDLE_S
        for tokens in LENGTHS:
            before = await _overlap(session, running)
            timings = [await ask(tokens, 8) for _ in range(REPEATS[tokens])]
            _check(timings)
            found.ttft_ms[tokens] = [timing.ttft_ms for timing in timings]
            after = await _overlap(session, running)
            if before is not None and after is not None:
                sent, hidden, exposed_s = (after[i] - before[i] for i in range(3))
                found.overlap[tokens] = (hidden / sent, exposed_s * 1e3 / len(timings)) if sent else (0.0, 0.0)
        for gap_s in LONG_GAPS_S:
            found.mixed[gap_s] = await _mixed(ask, gap_s, processes)
        await ask(64, 2000, leave_after=20)
        found.rest_s = await _until_idle(session, running)
        return found


async def _mixed(ask: Ask, gap_s: float, processes: Sequence[procfs.Process]) -> Mixed:
    """Run Poisson chats (64 in, 64 out) with a prompt of 1,000 tokens (16 out) every `gap_s` seconds, open loop."""
    rng = random.Random(5)
    chats_s: list[float] = []
    at_s = rng.expovariate(CHATS_PER_S)
    while at_s < MIXED_S:
        chats_s.append(at_s)
        at_s += rng.expovariate(CHATS_PER_S)
    longs_s = [0.5 + gap_s * index for index in range(int(MIXED_S / gap_s))]
    before_s, began_s = procfs.cpu_s(processes), time.monotonic()
    chats, longs = await asyncio.gather(
        open_loop(chats_s, lambda _: ask(64, 64)), open_loop(longs_s, lambda _: ask(1000, 16))
    )
    _check(chats + longs)
    return Mixed(chats, longs, (procfs.cpu_s(processes) - before_s) / (time.monotonic() - began_s))


def _check(timings: Sequence[Timing]) -> None:
    errors = [timing.error for timing in timings if timing.error]
    if errors:
        raise SystemExit(f"{len(errors)} of {len(timings)} requests failed; the first: {errors[0]}")


async def _overlap(session: LoadSession, running: Running) -> tuple[float, float, float] | None:
    """Read bytes sent, bytes hidden and exposed seconds of the prefill worker; None for a system without one."""
    if not running.name.startswith("Baton"):
        return None
    text = await session.text(running.url, "/workers/prefill-0/metrics")
    sent, hidden, exposed_s = (_sum(text, name) for name in ("landed_bytes", "hidden_bytes", "exposed_seconds"))
    return sent, hidden, exposed_s


def _sum(text: str, name: str) -> float:
    prefix = f"baton_kv_send_{name}_total"
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(prefix))


async def _until_idle(session: LoadSession, running: Running) -> float:
    """Return the seconds until no engine says that it runs or queues a request."""
    prefix = "baton_worker_" if running.name.startswith("Baton") else "vllm:num_requests_"
    began_s = time.monotonic()
    while time.monotonic() - began_s < 10:
        text = await session.text(running.url, "/metrics")
        busy = [line for line in text.splitlines() if line.startswith((f"{prefix}running", f"{prefix}waiting"))]
        if not any(float(line.rpartition(" ")[2]) for line in busy):
            return time.monotonic() - began_s
        await asyncio.sleep(0.01)
    return float("inf")


def report(passes: Sequence[Measured]) -> Iterator[str]:
    """Yield the tables."""
    names = list(dict.fromkeys(found.name for found in passes))
    by_name = {name: [found for found in passes if found.name == name] for name in names}
    yield f"Machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; " + (
        f"{len(passes) // len(names)} passes, systems in turn; median [min..max] over passes or requests."
    )
    yield from _overview(by_name)
    yield from _handover(by_name)
    yield from _mixed_table(by_name)
    yield from _details(by_name)


def _overview(by_name: dict[str, list[Measured]]) -> Iterator[str]:
    yield "\n| system | ready, s | PSS after warm-up, MiB | idle, cores | at rest after a client left, s |"
    yield "|---|---|---|---|---|"
    for name, runs in by_name.items():
        cells = (
            _spread([run.start_s for run in runs], 1),
            _spread([sum(p.pss_mb for p in run.memory) for run in runs], 0),
            _spread([run.idle_cores for run in runs], 3),
            _spread([run.rest_s for run in runs], 2),
        )
        yield f"| {name} | " + " | ".join(cells) + " |"


def _handover(by_name: dict[str, list[Measured]]) -> Iterator[str]:
    base_name, *_ = by_name
    yield f"\n| TTFT, ms, at prompt tokens | {' | '.join(map(str, LENGTHS))} |"
    yield "|---|" + "---|" * len(LENGTHS)
    medians = {}
    for name, runs in by_name.items():
        values = {n: [ttft for run in runs for ttft in run.ttft_ms[n]] for n in LENGTHS}
        medians[name] = {n: statistics.median(values[n]) for n in LENGTHS}
        yield f"| {name} | " + " | ".join(_spread(values[n], 0) for n in LENGTHS) + " |"
    for name, runs in by_name.items():
        if any(run.overlap for run in runs):
            cost = [f"{medians[name][n] - medians[base_name][n]:+.0f}" for n in LENGTHS]
            ratio = [f"{medians[name][n] / medians[base_name][n]:.2f}" for n in LENGTHS]
            hidden = [f"{statistics.median(run.overlap[n][0] for run in runs):.0%}" for n in LENGTHS]
            exposed = [f"{statistics.median(run.overlap[n][1] for run in runs):.1f}" for n in LENGTHS]
            yield f"| {name} minus {base_name} | " + " | ".join(cost) + " |"
            yield f"| {name} / {base_name} | " + " | ".join(ratio) + " |"
            yield "| transfer hidden behind prefill (bytes) | " + " | ".join(hidden) + " |"
            yield "| last layer computed to all landed, ms | " + " | ".join(exposed) + " |"


def _mixed_table(by_name: dict[str, list[Measured]]) -> Iterator[str]:
    yield (
        f"\n{CHATS_PER_S:g} chats/s (64 in, 64 out) and prompts of 1,000 tokens (16 out), {MIXED_S} s; "
        f"SLO: TTFT {SLO_TTFT_MS:g} ms, TPOT {SLO_TPOT_MS:g} ms; times in ms\n"
    )
    columns = ("chat ITL p50/p95/p99/max", "chat TTFT p50/p99", "chat TPOT p50/p99", "long TTFT p50/p99")
    yield f"| system | a long prompt every | {' | '.join(columns)} | within SLO | cores |"
    yield "|---|---|---|---|---|---|---|---|"
    for gap_s in LONG_GAPS_S:
        for name, runs in by_name.items():
            yield f"| {name} | {gap_s:g} s | " + " | ".join(_mixed_cells([run.mixed[gap_s] for run in runs])) + " |"


def _mixed_cells(runs: Sequence[Mixed]) -> Iterator[str]:
    chats = [timing for run in runs for timing in run.chats]
    longs = [timing for run in runs for timing in run.longs]
    good = sum(timing.within(SLO_TTFT_MS, SLO_TPOT_MS) for timing in chats + longs)
    yield _quantiles([gap for timing in chats for gap in timing.itl_ms], 0.5, 0.95, 0.99, 1)
    yield _quantiles([timing.ttft_ms for timing in chats], 0.5, 0.99)
    yield _quantiles([timing.tpot_ms for timing in chats], 0.5, 0.99)
    yield _quantiles([timing.ttft_ms for timing in longs], 0.5, 0.99)
    yield f"{good}/{len(chats) + len(longs)}"
    yield _spread([run.cores for run in runs], 2)


def _details(by_name: dict[str, list[Measured]]) -> Iterator[str]:
    for name, runs in by_name.items():
        run = runs[-1]
        if run.stages:
            yield f"\n{name}, start by stage (last pass):\n"
            yield from (f"- {at_s:.1f} s {stage}" for stage, at_s in run.stages)
        yield f"\n{name}, memory by process (last pass), MiB PSS:\n"
        yield from (f"- {process.pss_mb:.0f} {process.name}" for process in run.memory)


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}..{high:.{digits}f}]"


def _quantiles(values: Sequence[float], *points: float) -> str:
    return "/".join(f"{quantile(values, q):.0f}" for q in points)


@contextmanager
def _baton(model: Path, run_dir: Path) -> Iterator[Running]:
    """Run Baton with the model and KV memory of the one-pool engine, a core for each role."""
    pool = {"replicas": 1, "cpus": 1, "max_num_seqs": 64, "kv_cache_mb": KV_MB}
    config = {
        "model": {"path": str(model), "name": "m", "max_model_len": 4096},
        "slo": {"classes": {"chat": {"ttft_ms": SLO_TTFT_MS, "tpot_ms": SLO_TPOT_MS}}},
        "pools": {
            "prefill": {**pool, "max_num_batched_tokens": 512},
            "decode": {**pool, "max_num_batched_tokens": 256},
        },
    }
    file = run_dir / "bench.yaml"
    run_dir.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config))
    with stacks.baton(file, run_dir=run_dir) as running:
        yield running


def main() -> int:
    """Measure each system in turn, so many passes, and print the report."""
    parser = argparse.ArgumentParser(prog="python -m bench.smoke", description=__doc__)
    parser.add_argument("--passes", type=int, default=2, help="how often each system is measured (default 2)")
    parser.add_argument("--model", type=Path, help="model folder (default: a random Llama of 76 M parameters)")
    parser.add_argument("--only", choices=("baton", "one-pool"), help="measure one system only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
        model = options.model or _bench_model(Path(folder))
        passes: list[Measured] = []
        for index in range(options.passes):
            for system in _systems(model, Path(folder) / str(index), options.only):
                with system as running:
                    sys.stderr.write(f"pass {index + 1}: {running.name} is up after {running.start_s:.1f} s\n")
                    passes.append(asyncio.run(measure(running, seed=100 + index)))
        sys.stdout.write("\n".join(report(passes)) + "\n")
    return 0


def _systems(model: Path, run_dir: Path, only: str | None) -> Iterator[AbstractContextManager[Running]]:
    if only != "baton":
        yield stacks.one_pool(model, chunk_tokens=256, threads=2, kv_mb=KV_MB, run_dir=run_dir)
    if only != "one-pool":
        yield _baton(model, run_dir)


def _bench_model(folder: Path) -> Path:
    from engine.demo_model.random_model import make_preset

    return make_preset(folder / "bench-76m", "bench-76m")


if __name__ == "__main__":
    sys.exit(main())
