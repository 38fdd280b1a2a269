"""One benchmark's result as JSON: the keys of `vllm bench serve --save-result`, and Baton's beside them.

Owns the names of keys. Must not compute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from bench.serving.load_run import Run
from bench.serving.load_shape import LoadShape
from bench.serving.metrics import Distribution, Metrics
from bench.serving.stages import Stages
from sim.plan import Interval

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What one run was and what came of it."""

    label: str
    backend: str
    model: str
    shape: LoadShape
    metrics: Metrics
    run: Run
    stages: Stages | None = None  # of a Baton router
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Json] = field(default_factory=dict)
    is_interrupted: bool = False


def result_json(result: BenchResult, *, detailed: bool = False) -> dict[str, Json]:
    """Write everything; numbers that are not finite become null."""
    metrics, shape = result.metrics, result.shape
    value: dict[str, Json] = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": result.backend,
        "backend": result.backend,
        "label": result.label,
        "model_id": result.model,
        "tokenizer_id": None,
        "num_prompts": len(result.run.timings),
        **result.settings,
        "request_rate": shape.rate if math.isfinite(shape.rate) else "inf",
        "burstiness": shape.burstiness if math.isfinite(shape.burstiness) else "inf",
        "max_concurrency": shape.max_concurrency,
        "duration": metrics.duration_s,
        "completed": metrics.completed,
        "failed": metrics.failed,
        "total_input_tokens": metrics.input_tokens,
        "total_output_tokens": metrics.output_tokens,
        "request_throughput": metrics.request_throughput,
        "request_goodput": metrics.request_goodput if metrics.classes else None,
        "output_throughput": metrics.output_throughput,
        "total_token_throughput": metrics.total_token_throughput,
        "max_output_tokens_per_s": metrics.max_output_tokens_per_s,
        "max_concurrent_requests": metrics.max_concurrent_requests,
    }
    for name, found in metrics.distributions.items():
        value |= _distribution(name, found)
    return value | _added(result) | (_details(result.run) if detailed else {})


def interval_json(interval: Interval) -> list[Json]:
    """Write both ends."""
    return [_finite(interval.low), _finite(interval.high)]


def _distribution(name: str, found: Distribution) -> dict[str, Json]:
    value: dict[str, Json] = {
        f"mean_{name}_ms": _finite(found.mean.mid),
        f"median_{name}_ms": _finite(found.median.mid),
        f"std_{name}_ms": _finite(found.std),
        f"mean_{name}_ms_interval": interval_json(found.mean.interval),
        f"median_{name}_ms_interval": interval_json(found.median.interval),
    }
    for percentile, estimate in found.percentiles:
        value[f"p{percentile:g}_{name}_ms"] = _finite(estimate.mid)
        value[f"p{percentile:g}_{name}_ms_interval"] = interval_json(estimate.interval)
    return value


def _added(result: BenchResult) -> dict[str, Json]:
    metrics, health = result.metrics, result.run.health
    return {
        "interval_confidence": 0.9,
        "refused": metrics.refused,
        "cancelled": metrics.cancelled,
        "success": _finite(metrics.success.mid),
        "success_interval": interval_json(metrics.success.interval),
        "classes": [
            {
                "slo_class": found.name or None,
                "ttft_ms": _finite(found.targets.ttft_ms),
                "tpot_ms": _finite(found.targets.tpot_ms),
                "e2el_ms": _finite(found.targets.e2el_ms),
                "attainment_target": found.targets.attainment,
                "attainment": _finite(found.attainment.mid),
                "attainment_interval": interval_json(found.attainment.interval),
                "requests": found.attainment.count,
                "request_goodput": found.goodput,
            }
            for found in metrics.classes
        ],
        "ttft_stages_ms": None if result.stages is None else dict(result.stages.mean_ms),
        "client": {
            "cpu_share": health.cpu_share,
            "waited_share": health.waited_share,
            "lag_p99_ms": health.lag_p99_ms,
            "late_p99_ms": health.late_p99_ms,
            "problems": list(health.problems),
        },
        "error_counts": [{"error": text, "count": count} for text, count in metrics.errors],
        "remarks": [*metrics.remarks],
        "notes": [*result.notes],
    }


def _details(run: Run) -> dict[str, Json]:
    timings = [t for t in run.timings if not t.is_cancelled]
    return {
        "input_lens": [t.prompt_tokens for t in timings],
        "output_lens": [t.output_tokens if t.is_complete else 0 for t in timings],
        "ttfts": [t.ttft_ms / 1e3 if t.is_complete else 0.0 for t in timings],
        "itls": [_seconds(t.itl_ms) if t.is_complete else [] for t in timings],
        "latencies": [t.e2el_ms / 1e3 if t.is_complete else 0.0 for t in timings],
        "start_times": [t.sent_s for t in timings],
        "queue_times": [t.sent_s - t.due_s for t in timings],
        "errors": [t.error for t in timings],
        "slo_classes": [t.slo_class for t in timings],
    }


def _seconds(values_ms: Sequence[float]) -> list[Json]:
    return [value / 1e3 for value in values_ms]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
