"""The fit: finds the slowdown that made the rows, says how far off it is, and asks for tables that are missing."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import ConfigError
from core.latency.device_fit import AXES, Samples, fit_kernels
from core.latency.kernels import (
    Peaks,
    all_reduce_floor_s,
    decode_attention_floor_s,
    gemm_floor_s,
    prefill_attention_floor_s,
)

PEAKS = Peaks(1e15, 2e15, 4e12, 450e9)


def samples(slowdown: float) -> dict[str, Samples]:
    """Make rows all over each kernel's sizes, each `slowdown` times its floor."""
    random, found = np.random.default_rng(0), {}
    for name, axes in AXES.items():
        points = np.column_stack([np.exp(random.uniform(np.log(a[0]), np.log(a[-1]), 2000)) for a in axes])
        floors_s = {
            "gemm_bfloat16": lambda p: gemm_floor_s(PEAKS, p, weight_bytes=2.0, fp8=False),
            "gemm_fp8": lambda p: gemm_floor_s(PEAKS, p, weight_bytes=1.0, fp8=True),
            "prefill_attention": lambda p: prefill_attention_floor_s(PEAKS, p),
            "decode_attention": lambda p: decode_attention_floor_s(PEAKS, p),
            "all_reduce": lambda p: all_reduce_floor_s(PEAKS, p),
        }[name](points)
        found[name] = Samples(points, slowdown * floors_s)
    return found


def test_a_constant_slowdown_is_found_in_every_kernel() -> None:
    kernels, errors = fit_kernels(PEAKS, samples(1.5))
    assert kernels.gemm_s(100, 4096, 4096) == pytest.approx(
        1.5 * float(gemm_floor_s(PEAKS, np.array([[100.0, 4096.0, 4096.0]]), weight_bytes=2.0, fp8=False)[0])
    )
    assert set(errors) == set(AXES)
    assert all(error.p90 < 1e-3 and error.rows > 100 for error in errors.values())


def test_a_missing_table_is_named() -> None:
    rows = samples(1.0)
    del rows["all_reduce"]
    with pytest.raises(ConfigError, match="all_reduce"):
        fit_kernels(PEAKS, rows)
