"""`python -m bench.flip_live`: what flips cost on real engines, and one that the controller decides by itself.

One prefill and two decode workers of the demonstration model serve a steady load while one of them is flipped and
flipped back by `baton flip`, again and again; then `scaling.mode: auto` is applied without a profile and long prompts
come. Prints Markdown for docs/benchmarks.md. Owns the load and the table; flips and decisions are Baton's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from bench import stacks
from bench.load import LoadSession, Prompts, Timing, open_session, quantile, stream_completion
from bench.stacks import ROOT, Running

MODEL: Final = "baton-demo"
CONFIG: Final = ROOT / "deploy/slo.yaml"
TTFT_MS, TPOT_MS = 1000.0, 100.0  # of deploy/slo.yaml
STEADY: Final = (64, 48)  # tokens in, tokens out
LONG: Final = (1500, 4)
FLIPPED: Final = "decode-1"
VERB_S: Final = 120.0
SETTINGS: Final = (
    "ray.address=local",
    "router.admission=false",
    "pools.decode.replicas=2",
    "pools.prefill.kv_cache_mb=128",
    "pools.decode.kv_cache_mb=128",
    "scaling.interval_s=2",
)

Span: TypeAlias = tuple[float, float]  # from and to, by time.perf_counter()


@dataclass(frozen=True, slots=True)
class Window:
    """Parts of the run that are alike, and what was asked in them."""

    name: str
    took_s: float
    asked: tuple[Timing, ...]

    def row(self) -> str:
        """Write one row of the table."""
        done = [timing for timing in self.asked if timing.is_complete]
        kept = sum(timing.within(TTFT_MS, TPOT_MS) for timing in self.asked)
        share = f"{kept / len(self.asked):.0%}" if self.asked else "-"
        ttft, tpot = (quantile([getattr(t, name) for t in done], 0.9) for name in ("ttft_ms", "tpot_ms"))
        cells = (
            f"{self.took_s:.1f}",
            str(len(self.asked)),
            str(len(self.asked) - len(done)),
            share,
            f"{ttft:.0f}",
            f"{tpot:.0f}",
        )
        return f"| {self.name} | {' | '.join(cells)} |"


@dataclass
class Loaded:
    """Clients that ask one after another, each all the time."""

    url: str
    session: LoadSession
    timings: list[Timing] = field(default_factory=list)
    lengths: tuple[int, int] = STEADY
    asking: list[asyncio.Task[None]] = field(default_factory=list)
    _stops: bool = False

    async def ask_on(self, number: int) -> None:
        """Be one client, until told to stop."""
        prompts = Prompts(number)
        while not self._stops:
            tokens, output = self.lengths
            self.timings.append(
                await stream_completion(self.session, self.url, prompts.make(tokens), model=MODEL, max_tokens=output)
            )

    async def drained(self) -> None:
        """Ask nothing more, and wait for what is under way."""
        self._stops = True
        await asyncio.gather(*self.asking)

    def window(self, name: str, *spans: Span) -> Window:
        """Take what was under way in any of these spans of time; all of it must have ended."""
        asked = tuple(t for t in self.timings if any(t.sent_s < to_s and t.ended_s > from_s for from_s, to_s in spans))
        return Window(name, sum(to_s - from_s for from_s, to_s in spans), asked)


class Cluster:
    """The verbs of the command line, for what runs."""

    def __init__(self, running: Running, state: Path, settings: Sequence[str]) -> None:
        self._environment = {**os.environ, "BATON_STATE_DIR": str(state)}
        self._environment["BATON_ROUTER__PORT"] = running.url.rpartition(":")[2]
        self._settings = [part for one in settings for part in ("--set", one)]

    async def verb(self, *words: str) -> dict[str, Any]:
        """Run one verb and return its JSON. Raises SystemExit when it fails."""
        command = [sys.executable, str(ROOT / "baton.py"), *words, "--json"]
        done = await asyncio.to_thread(
            subprocess.run, command, env=self._environment, capture_output=True, text=True, timeout=VERB_S, cwd=ROOT
        )
        if done.returncode:
            raise SystemExit(f"{words}: {done.stdout}{done.stderr}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    async def apply(self, *more: str) -> None:
        """Apply the configuration with more settings."""
        await self.verb("apply", str(CONFIG), *self._settings, *(part for one in more for part in ("--set", one)))


@contextlib.asynccontextmanager
async def loaded(url: str, clients: int) -> AsyncIterator[Loaded]:
    """Keep so many clients busy."""
    async with open_session() as session:
        found = Loaded(url, session)
        found.asking = [asyncio.create_task(found.ask_on(number)) for number in range(clients)]
        try:
            yield found
        finally:
            for task in found.asking:
                task.cancel()
            await asyncio.gather(*found.asking, return_exceptions=True)


async def measure(cluster: Cluster, url: str, options: argparse.Namespace) -> Iterator[str]:
    """Flip by hand, then let the controller; return the lines of the report."""
    flips: list[dict[str, Any]] = []
    flipping: list[Span] = []
    async with loaded(url, options.clients) as load:
        await asyncio.sleep(options.seconds)  # engines meet their first sizes
        steady = [await _pause(options.seconds)]
        for role in ("prefill", "decode") * options.flips:
            began_s = time.perf_counter()
            flips.append(await cluster.verb("flip", FLIPPED, role))
            flipping.append((began_s, time.perf_counter()))
            steady.append(await _pause(options.seconds / 2))
        await cluster.apply("scaling.mode=auto")
        load.lengths = LONG
        began_s = time.perf_counter()
        decided_s = await _decided(cluster, options.patience)
        before = (began_s, time.perf_counter())
        after = await _pause(2 * options.seconds)
        status = await cluster.verb("status")
        await load.drained()
        windows = [
            load.window("no flip", *steady),
            load.window(f"`baton flip` runs, {len(flips)} times", *flipping),
            load.window("long prompts, until a flip was decided", before),
            load.window("long prompts, afterwards", after),
        ]
    return _report(windows, flips, decided_s, status)


async def _pause(seconds: float) -> Span:
    began_s = time.perf_counter()
    await asyncio.sleep(seconds)
    return began_s, time.perf_counter()


async def _decided(cluster: Cluster, patience_s: float) -> float | None:
    """Wait for a flip that the controller has decided; return the seconds, None when none came."""
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < patience_s:
        status = await cluster.verb("status")
        if any(decision["flips"] and decision["by"] == "decider" for decision in status["decisions"]):
            return time.perf_counter() - began_s
        await asyncio.sleep(1.0)  # `status` is asked, nobody tells
    return None


def _report(
    windows: list[Window], flips: list[dict[str, Any]], decided: float | None, status: dict[str, Any]
) -> Iterator[str]:
    took_s = ", ".join(f"{flip['took_s']:.2f} s" for flip in flips)
    yield f"flips by hand took {took_s}"
    yield f"a flip was decided after {decided:.0f} s" if decided is not None else "no flip was decided"
    yield ""
    yield "| | s | requests | not answered | in time | TTFT p90, ms | TPOT p90, ms |"
    yield "|---|---|---|---|---|---|---|"
    yield from (window.row() for window in windows)
    yield ""
    for decision in status["decisions"]:
        told = "; ".join([*decision["flips"], decision["reason"], decision["outcome"], decision["verdict"]])
        took = "" if decision["took_s"] is None else f", done in {decision['took_s']:.1f} s"
        yield f"decision {decision['number']} by the {decision['by']}{took}: {told}"


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="bench.flip_live", description=__doc__)
    parser.add_argument("--clients", type=int, default=4, help="(default: %(default)d)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each part (default: %(default)g)")
    parser.add_argument("--flips", type=int, default=3, help="there and back (default: %(default)d)")
    parser.add_argument("--patience", type=float, default=60.0, help="for the controller (default: %(default)g s)")
    options = parser.parse_args()
    cpus = len(os.sched_getaffinity(0)) / 3.3  # there is room for three workers, and not for a fourth
    settings = (*SETTINGS, f"pools.prefill.cpus={cpus:.2f}", f"pools.decode.cpus={cpus:.2f}")
    with tempfile.TemporaryDirectory(prefix="baton-flip-") as folder:
        run_dir = Path(folder)
        with stacks.baton(CONFIG, run_dir=run_dir, overrides=settings) as running:
            cluster = Cluster(running, run_dir / "state", settings)
            for line in asyncio.run(measure(cluster, running.url, options)):
                sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
