"""Answers that are made up, for tests of what is computed from them."""

from __future__ import annotations

from array import array

import numpy as np

from bench.serving.client_health import ClientHealth
from bench.serving.load_run import Run
from bench.serving.timing import Timing

QUIET = ClientHealth(0.1, 0.0, 1.0, 1.0)


def answered(sent_s: float, ttft_s: float, itl_s: float = 0.01, tokens: int = 5, slo_class: str = "") -> Timing:
    """Make a complete answer of evenly spaced tokens."""
    times = array("d", [sent_s + ttft_s + i * itl_s for i in range(tokens)])
    return Timing(
        sent_s, times, due_s=sent_s, ended_s=times[-1], prompt_tokens=10, output_tokens=tokens, slo_class=slo_class
    )


def poisson(count: int, seed: int, *, slower: float = 1.0, slo_class: str = "") -> list[Timing]:
    """Make answers with exponential TTFT and ITL, `slower` times as long as usual; seed by seed the same noise."""
    rng = np.random.default_rng(seed)
    return [
        answered(i * 0.1, slower * (0.05 + rng.exponential(0.1)), slower * rng.exponential(0.01), slo_class=slo_class)
        for i in range(count)
    ]


def run_of(timings: list[Timing]) -> Run:
    """Make a run."""
    return Run(timings, 0.1 * len(timings), QUIET, 0.0)
