"""`python -m bench.control_plane`: one controller and one router with many workers; some die or flip all along.

Owns the run and its table. Decisions are only shown (`scaling.mode: advise`), so that the workers stay as many as they
are. Must not know how any of it works.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import median
from typing import Final

from bench.control_plane.local_ray import HERE, NODE_ID, LocalRay, WorkersProcess
from bench.control_plane.stopwatch import Reach, Stopwatch
from cluster.cluster_status import StartOrder
from cluster.controller import Controller
from cluster.placement import place_workers
from core.config.load import load_config
from core.config.models import BatonConfig
from core.control.reconcile import Phase
from core.types import Membership, Role
from sim.live_decider import live_decider

_PROFILE: Final = Path(__file__).resolve().parents[2] / "deploy/profiles/llama-3.1-8b-rtxpro6000.json"
_START_S: Final = 300.0
_STOP_S: Final = 10.0
_SETTLE_S: Final = 120.0
_LOOK_S: Final = 0.05
_WARM_DECISIONS: Final = 5
_MARKS: Final = 5  # how often memory is told
_MIB: Final = 1 << 20


class Site:
    """The controller that is measured, and what is measured of it."""

    def __init__(self, controller: Controller, ray: LocalRay) -> None:
        self.controller, self.ray = controller, ray
        self.pools, self.observed, self.decided = Stopwatch(), Stopwatch(), Stopwatch()
        self.reach = Reach()
        made = controller
        made._pools._step = self.pools.on_awaited(made._pools._step)  # type: ignore[method-assign,assignment]
        made._observe = self.observed.on_awaited(made._observe)  # type: ignore[method-assign,assignment]
        made._scaling._ask_here = self.decided.on(made._scaling._ask_here)  # type: ignore[method-assign]
        self._publish = made._members.publish
        made._members.publish = self._published

    def _published(self, membership: Membership) -> None:
        self.reach.published(membership)
        self._publish(membership)

    def ready(self, role: Role) -> list[str]:
        """List the workers of a role that serve."""
        return [m.worker_id for m in self.controller._members if m.phase is Phase.READY and m.role is role]

    async def change(self, rng: random.Random, number: int) -> None:
        """Kill a worker, or have one change its role: to decode and to prefill in turn."""
        if number % 2:
            to = Role.PREFILL if number % 4 == 1 else Role.DECODE
            source = Role.DECODE if to is Role.PREFILL else Role.PREFILL
            await self.controller.flip(rng.choice(self.ready(source)), to, 0.0, "churn")
        else:
            await self.ray.kill(rng.choice(self.ready(rng.choice(list(Role)))))

    async def warm(self) -> None:
        """Wait until all serves and some decisions were made, which load and compile; forget what was measured of it.

        Raises TimeoutError.
        """
        await self.settled()
        deadline_s = time.monotonic() + _SETTLE_S
        while len(self.decided.wall_s) < _WARM_DECISIONS:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{len(self.decided.wall_s)} decisions after {_SETTLE_S:g} s")
            await asyncio.sleep(_LOOK_S)  # the loop of decisions tells nobody
        self.reach.took_s.clear()
        self.forget_steps()

    def steps(self, when: str) -> list[str]:
        """Write the rows of the table of steps."""
        watches = (
            ("what to do of the pools", self.pools),
            ("what a decider is told", self.observed),
            ("a decision", self.decided),
        )
        return [f"| {name}, {when} | {' | '.join(watch.cells())} |" for name, watch in watches]

    def forget_steps(self) -> None:
        """Begin the times of steps anew."""
        for watch in (self.pools, self.observed, self.decided):
            watch.forget()

    async def settled(self) -> None:
        """Wait until every worker serves and the router has every change. Raises TimeoutError."""
        deadline_s = time.monotonic() + _SETTLE_S
        while self.reach.num_awaited or any(m.phase is not Phase.READY for m in self.controller._members):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the router lacks {self.reach.num_awaited} changes after {_SETTLE_S:g} s")
            await asyncio.sleep(_LOOK_S)  # two parties, and neither tells


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(prog="bench.control_plane", description=__doc__)
    parser.add_argument("--workers", type=int, default=256, help="half of them prefill (default: %(default)d)")
    parser.add_argument("--changes", type=int, default=360, help="deaths and flips (default: %(default)d)")
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two of them (default: %(default)g)")
    parser.add_argument("--still", type=float, default=20.0, help="seconds without any, before (default: %(default)g)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second meanwhile (default: %(default)g)")
    return parser.parse_args(arguments)


def configured(folder: Path, workers: int) -> BatonConfig:
    """Make the configuration of so many workers."""
    (folder / "demo").mkdir()
    (folder / "demo" / "config.json").write_text("{}")
    settings = (
        f"model.path={folder / 'demo'}",
        "router.port=0",
        "router.admission=false",
        f"pools.prefill.replicas={workers // 2}",
        f"pools.decode.replicas={workers - workers // 2}",
        "healing.first_delay_s=0.05",
        "healing.max_failures=100",
        f"plan.profile={_PROFILE}",
        "scaling.mode=advise",
        "scaling.interval_s=1",
    )
    return load_config(None, overrides=list(settings), environ={})


def order_of(config: BatonConfig, folder: Path, ray: LocalRay) -> StartOrder:
    """Write the order down."""
    return StartOrder(
        config=config,
        placements=place_workers(config, ray.nodes),
        engine_kind="simulated",
        engine_args=(),
        base=str(folder),
        run_dir=str(folder),
        node_id=NODE_ID,
        address=HERE,
        token="bench",
        env_vars={},
        decider=live_decider,
    )


@contextlib.asynccontextmanager
async def site_of(folder: Path, workers: int) -> AsyncIterator[tuple[Site, str]]:
    """Start everything; yield the site and the router's URL; end everything."""
    shared = WorkersProcess()
    await shared.start()
    ray = LocalRay(shared, cpus=2.0 * workers)
    ray.install()
    site = Site(Controller(order_of(configured(folder, workers), folder, ray)), ray)
    try:
        starting = asyncio.create_task(site.controller.start(_START_S))  # `stop` ends the task that starts
        yield site, "http://" + await starting
    finally:
        await site.controller.stop(_STOP_S)
        await shared.close()


async def run(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Run and return the lines of the report."""
    began_s = time.monotonic()
    async with site_of(folder, options.workers) as (site, url):
        start_s = time.monotonic() - began_s
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.control_plane.client", url, str(options.rate), stdout=asyncio.subprocess.PIPE
        )
        looking = asyncio.create_task(_look(site, client), name="look")
        try:
            await site.warm()
            await asyncio.sleep(options.still)
            still = site.steps("steady")
            site.forget_steps()
            memory = await _churn(site, options)
        finally:
            client.kill()
            await client.wait()
            looking.cancel()
        return _report(site, options, start_s, still, memory)


async def _look(site: Site, client: asyncio.subprocess.Process) -> None:
    assert client.stdout is not None
    while line := await client.stdout.readline():
        told = json.loads(line)
        site.reach.seen(told["at_s"], told["workers"])


async def _churn(site: Site, options: argparse.Namespace) -> list[tuple[int, float]]:
    """Change workers; return the resident memory of this process, in MiB, by the number of changes before."""
    rng = random.Random(0)
    marks = {round(options.changes * mark / _MARKS) for mark in range(_MARKS + 1)}
    memory = []
    for number in itertools.count():
        if number in marks:
            memory.append((number, _resident_mib()))
        if number == options.changes:
            await site.settled()
            return memory
        await site.change(rng, number)
        await asyncio.sleep(options.every)
    raise AssertionError("counting has no end")


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def _report(
    site: Site, options: argparse.Namespace, start_s: float, still: list[str], memory: list[tuple[int, float]]
) -> Iterator[str]:
    took_s = sorted(site.reach.took_s)
    yield f"{options.workers} workers up in {start_s:.1f} s; {options.changes} changes, one in {options.every:g} s"
    late = took_s[int(0.99 * (len(took_s) - 1))]
    yield (
        f"a new role or life of a worker at the router after (s): median {median(took_s):.3f}, 99 % {late:.3f}, "
        f"most {took_s[-1]:.3f}, of {len(took_s)}"
    )
    yield ""
    yield "| ms | times | CPU, median | most | wall, median | most |"
    yield "|---|---|---|---|---|---|"
    yield from still
    yield from site.steps("while workers change")
    yield ""
    yield "| changes | " + " | ".join(str(number) for number, _ in memory) + " |"
    yield "|---" * (len(memory) + 1) + "|"
    yield "| resident memory of the controller's process, MiB | " + " | ".join(f"{m:.1f}" for _, m in memory) + " |"


def main() -> int:
    """Run and print."""
    options = options_of()
    with tempfile.TemporaryDirectory(prefix="baton-control-") as folder:
        for line in asyncio.run(run(options, Path(folder))):
            sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
