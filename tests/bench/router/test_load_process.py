"""What processes used is read right, and a window holds what was noted."""

from __future__ import annotations

import os

from bench.core_wait import CoreTimes
from bench.router.client import Notes
from bench.router.load_process import Meter, window_of
from bench.router.window import Spread


def test_a_window_is_what_was_noted_in_its_time() -> None:
    notes = Notes(0, latencies=[2_000_000], relays=[1_000_000, 3_000_000], errors=1, first_error="no")
    seen = window_of(notes, 2.0, {"router": CoreTimes(1.0, 0.0)}, 3.0)
    assert (seen.requests, seen.tokens, seen.errors, seen.first_error) == (1, 2, 1, "no")
    assert seen.latency == Spread(2.0, 2.0, 2.0)
    assert (seen.cores("router"), seen.busy_cores) == (0.5, 1.5)


def test_the_meter_reads_this_process_and_those_named() -> None:
    meter = Meter({"parent": os.getppid()})
    sum(n * n for n in range(200_000))
    times, busy = meter.read()
    assert set(times) == {"client", "parent"}
    assert times["client"].ran_s > 0
    assert busy >= 0
