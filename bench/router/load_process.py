"""`python -m bench.router.load_process`: loads one port, and tells of each window as one line of JSON.

Owns the process, the windows, and the reading of what the watched processes used in each.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import time
from collections.abc import Mapping

import uvloop

from bench.core_wait import CoreTimes, core_times
from bench.router.calm import machine_busy_s
from bench.router.client import Clients, Load, Notes
from bench.router.window import Spread, Window


class Meter:
    """Reads what processes and the machine have used; `read` gives the difference to the reading before."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = {**pids, "client": os.getpid()}
        self._before = self._now()

    def read(self) -> tuple[dict[str, CoreTimes], float]:
        """Return times by process name, and busy seconds of the machine."""
        (times, busy), (times_before, busy_before) = now, _ = self._now(), self._before
        self._before = now
        return {name: times[name].since(times_before[name]) for name in times}, busy - busy_before

    def _now(self) -> tuple[dict[str, CoreTimes], float]:
        times = {name: core_times(pid) for name, pid in self._pids.items()}
        return times, machine_busy_s()


def window_of(notes: Notes, seconds: float, times: Mapping[str, CoreTimes], busy_seconds: float) -> Window:
    """Put together what is known of one window."""
    return Window(
        seconds,
        len(notes.latencies),
        len(notes.relays),
        notes.errors,
        notes.first_error,
        latency=Spread.of_ns(notes.latencies),
        ttft=Spread.of_ns(notes.first_tokens),
        relay=Spread.of_ns(notes.relays),
        gap=Spread.of_ns(notes.gaps),
        times=times,
        busy_cores=busy_seconds / seconds,
    )


async def _run(arguments: argparse.Namespace) -> None:
    load = Load(arguments.connections, arguments.prompt_bytes, arguments.max_tokens, arguments.stream)
    clients = Clients(load, arguments.port, first_prompt=arguments.first_prompt)
    await clients.start()
    await asyncio.sleep(arguments.warm_s)
    meter = Meter({name: int(pid) for name, _, pid in (pair.partition("=") for pair in arguments.watch)})
    clients.turn_page()
    for index in range(arguments.windows):
        began_s = time.monotonic()
        await asyncio.sleep(arguments.seconds)
        clients.is_over = index == arguments.windows - 1
        times, busy_seconds = meter.read()
        window = window_of(clients.turn_page(), time.monotonic() - began_s, times, busy_seconds)
        sys.stdout.write(window.to_json() + "\n")
        sys.stdout.flush()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="bench.router.load_process", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--prompt-bytes", type=int, default=400)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--warm-s", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a window")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--first-prompt", type=int, default=1, help="number of the first prompt; each is sent once")
    parser.add_argument("--watch", nargs="*", default=[], metavar="NAME=PID", help="processes whose times are read")
    arguments = parser.parse_args()
    gc.disable()  # what this client makes dies by reference count
    uvloop.run(_run(arguments))


if __name__ == "__main__":
    main()
