"""A result as lines for people: the block that `vllm bench serve` prints, with intervals beside the figures.

Owns the wording. Must not compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from bench.serving.metrics import Distribution, Metrics
from bench.serving.result import BenchResult
from bench.serving.statistics import Estimate
from sim.figures import percent

_TITLES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}
_WIDTH = 50
_SHOWN_ERRORS = 3


def console_block(result: BenchResult, *, metrics: Sequence[str] = ("ttft", "tpot", "itl", "e2el")) -> list[str]:
    """Write the block; intervals are of 90 %."""
    found = result.metrics
    lines = [f"{' Serving Benchmark Result ':=^{_WIDTH}}", *_counts(result)]
    for name in metrics:
        lines += _distribution(found.distributions[name])
    lines += _attainment(found)
    if result.stages is not None:
        lines.append(f"{' Stages of TTFT (mean, ms) ':-^{_WIDTH}}")
        lines += [_line(f"{stage}:", f"{ms:.2f}") for stage, ms in result.stages.mean_ms.items()]
    lines.append("=" * _WIDTH)
    return [*lines, *_warnings(result)]


def _counts(result: BenchResult) -> Iterator[str]:
    found, shape = result.metrics, result.shape
    yield _line("Successful requests:", found.completed)
    yield _line("Failed requests:", found.failed)
    if found.refused:
        yield _line("  of these refused (429):", found.refused)
    if found.cancelled:
        yield _line("Left by the client on purpose:", found.cancelled)
    if shape.max_concurrency is not None:
        yield _line("Maximum request concurrency:", shape.max_concurrency)
    if math.isfinite(shape.rate):
        yield _line("Request rate configured (RPS):", f"{shape.rate:.2f}")
    yield _line("Benchmark duration (s):", f"{found.duration_s:.2f}")
    yield _line("Total input tokens:", found.input_tokens)
    yield _line("Total generated tokens:", found.output_tokens)
    yield _line("Request throughput (req/s):", f"{found.request_throughput:.2f}")
    if found.classes:
        yield _line("Request goodput (req/s):", f"{found.request_goodput:.2f}")
    yield _line("Output token throughput (tok/s):", f"{found.output_throughput:.2f}")
    yield _line("Peak output token throughput (tok/s):", f"{found.max_output_tokens_per_s:.2f}")
    yield _line("Peak concurrent requests:", f"{found.max_concurrent_requests:.2f}")
    yield _line("Total token throughput (tok/s):", f"{found.total_token_throughput:.2f}")


def _distribution(found: Distribution) -> Iterator[str]:
    short, title = _TITLES[found.name]
    yield f"{title:-^{_WIDTH}}"
    if not len(found.values):
        yield _line(f"Mean {short} (ms):", "-")
        return
    yield _line(f"Mean {short} (ms):", _estimate(found.mean))
    yield _line(f"Median {short} (ms):", _estimate(found.median))
    for percentile, estimate in found.percentiles:
        if percentile != 50.0:
            yield _line(f"P{percentile:g} {short} (ms):", _estimate(estimate))


def _attainment(found: Metrics) -> Iterator[str]:
    if found.classes:
        yield f"{' SLO Attainment ':-^{_WIDTH}}"
    for result in found.classes:
        name = f"Attainment of {result.name}:" if result.name else "Attainment:"
        yield _line(name, percent(result.attainment.interval) if result.attainment.count else "no request")


def _warnings(result: BenchResult) -> Iterator[str]:
    for problem in result.run.health.problems:
        yield f"the client was the bottleneck: {problem}"
    for remark in result.metrics.remarks:
        yield f"run longer: {remark}"
    for text, count in result.metrics.errors[:_SHOWN_ERRORS]:
        yield f"error, {count} times: {text}"
    for note in result.notes:
        yield f"note: {note}"


def _estimate(estimate: Estimate) -> str:
    low, high = estimate.interval.low, estimate.interval.high
    ends = f"({_bound(low)}..{_bound(high)})"
    return f"{estimate.mid:<10.2f} {ends}"


def _bound(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "?"


def _line(label: str, value: object) -> str:
    return f"{label:<40} {value!s:<10}".rstrip()
