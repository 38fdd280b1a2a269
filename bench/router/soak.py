"""The router's memory under load with prompts that never come again.

Owns the load over time and the line through what is resident. Must not know what the router keeps.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bench.router.client import Load
from bench.router.site import Cores, open_site, rss_mb

_USUAL_PROMPT_BYTES: Final = 400  # of the requests in whose number the churn is told
_WINDOW_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Soak:
    """How long, and under what."""

    cores: Cores
    seconds: float
    connections: int
    prompt_bytes: int
    policy: str
    window_s: float = _WINDOW_S


@dataclass(frozen=True, slots=True)
class Sample:
    """The end of one window."""

    at_s: float
    requests: int  # so far
    errors: int
    rss_mb: float
    cpu_us: float  # a request
    p99_ms: float


def soak(plan: Soak) -> list[Sample]:
    """Load Baton's router alone; sample it at the end of each window."""
    samples: list[Sample] = []
    load = Load(plan.connections, prompt_bytes=plan.prompt_bytes)
    windows = max(2, round(plan.seconds / plan.window_s))
    with open_site(plan.cores) as site:
        router = site.start_baton(plan.policy)
        assert router.pid is not None
        requests, at_s = 0, 0.0
        for window in site.load(router, load, seconds=plan.window_s, windows=windows):
            requests, at_s = requests + window.requests, at_s + window.seconds
            cpu_us = window.cores("router") * window.seconds * 1e6 / max(1, window.requests)
            sample = Sample(at_s, requests, window.errors, rss_mb(router.pid), cpu_us, window.latency.p99)
            samples.append(sample)
            sys.stderr.write(f"{at_s:6.0f} s {requests:10,} requests {sample.rss_mb:7.1f} MiB {window.errors} errors\n")
            with contextlib.suppress(OSError):  # a line for each request would fill the disk
                os.truncate(site.run_dir / "router.log", 0)
    return samples


def growth_mb(samples: Sequence[Sample]) -> float:
    """Fit a line through the second half of the samples; return MiB for a million requests."""
    late = samples[len(samples) // 2 :]
    if len(late) < 2:
        return 0.0
    return 1e6 * statistics.linear_regression([s.requests for s in late], [s.rss_mb for s in late]).slope


def soak_report(plan: Soak, samples: Sequence[Sample]) -> Iterator[str]:
    """Yield the table: about ten rows, then what it comes to."""
    last = samples[-1]
    worth = last.requests * plan.prompt_bytes / _USUAL_PROMPT_BYTES
    yield (
        f"{plan.connections} connections, prompts of {plan.prompt_bytes:,} bytes, none sent twice; {plan.policy}: "
        f"{last.requests:,} requests in {last.at_s:.0f} s, in bytes of prompts as much as {worth:,.0f} requests of "
        f"{_USUAL_PROMPT_BYTES}; {sum(s.errors for s in samples)} errors.\n"
    )
    yield "| s | requests | resident, MiB | CPU, us a request | p99, ms |"
    yield "|---|---|---|---|---|"
    for sample in samples[:: max(1, len(samples) // 10)]:
        cells = f"{sample.rss_mb:.1f} | {sample.cpu_us:.0f} | {sample.p99_ms:.1f}"
        yield f"| {sample.at_s:.0f} | {sample.requests:,} | {cells} |"
    yield (
        f"\nGrowth in the second half: {growth_mb(samples):+.2f} MiB a million requests; "
        f"{last.rss_mb - samples[len(samples) // 2].rss_mb:+.1f} MiB in all."
    )
