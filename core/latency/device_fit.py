"""Fits the slowdowns of kernels to measured latencies, and says how far off they are on rows kept out.

Owns the knots and the fit. Must not know the tables' file format (sim.kernel_tables).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from core.errors import ConfigError
from core.latency.grid import Floats, fit_grid
from core.latency.kernels import (
    Kernels,
    Peaks,
    all_reduce_floor_s,
    decode_attention_floor_s,
    gemm_floor_s,
    prefill_attention_floor_s,
)

_WIDTHS = (32.0, 128.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 65536.0)
# Knots where the tables bend: at the tile sizes of small token counts, and at the switch of all-reduce algorithms.
AXES: Mapping[str, tuple[tuple[float, ...], ...]] = {
    "gemm_bfloat16": ((1, 16, 64, 128, 256, 512, 1024, 2048, 4352), _WIDTHS, _WIDTHS),
    "gemm_fp8": ((1, 16, 64, 128, 256, 512, 1024, 2048, 4352), _WIDTHS, _WIDTHS),
    "prefill_attention": ((1, 8, 64, 256), (16, 64, 256, 1024, 4096, 16384), (1, 4, 16, 96), (1, 4, 16)),
    "decode_attention": ((1, 4, 16, 64, 256, 2048), (16, 128, 512, 2048, 8192, 32768, 131072), (1, 2, 8)),
    "all_reduce": ((2, 4, 8), (256, 2**15, 2**17, 2**18, 2**19, 2**20, 2**21, 2**22, 2**23, 2**25, 2**30)),
}
_KEPT_OUT_EVERY = 8  # one row in so many tests the fit


@dataclass(frozen=True, slots=True)
class Samples:
    """Measured rows of one kernel: the sizes its grid has as axes, and seconds."""

    points: Floats  # (num_rows, num_axes)
    seconds: Floats  # (num_rows,)


@dataclass(frozen=True, slots=True)
class FitError:
    """The relative error of one kernel on rows kept out of its fit."""

    rows: int
    median: float
    p90: float


def fit_kernels(peaks: Peaks, samples: Mapping[str, Samples]) -> tuple[Kernels, dict[str, FitError]]:
    """Fit every kernel named in AXES; the errors are of a fit without the rows they are measured on.

    Raises ConfigError when a kernel has no rows.
    """
    grids, errors = {}, {}
    for name, axes in AXES.items():
        rows = samples.get(name)
        if rows is None or not len(rows.seconds):
            raise ConfigError(f"the kernel tables hold no row of {name}: give the table that does")
        slowdowns = rows.seconds / _floor_s(name, peaks, rows.points)
        knots = tuple(tuple(float(k) for k in axis) for axis in axes)
        grids[name] = fit_grid(knots, rows.points, slowdowns)
        kept_out = _kept_out(len(slowdowns))
        if kept_out.any():
            trial = fit_grid(knots, rows.points[~kept_out], slowdowns[~kept_out])
            off = np.abs(trial.at(rows.points[kept_out]) / slowdowns[kept_out] - 1)
            errors[name] = FitError(int(kept_out.sum()), float(np.median(off)), float(np.quantile(off, 0.9)))
    return Kernels(peaks, **grids), errors


def _floor_s(name: str, peaks: Peaks, points: Floats) -> Floats:
    if name == "gemm_bfloat16":
        return gemm_floor_s(peaks, points, weight_bytes=2.0, fp8=False)
    if name == "gemm_fp8":
        return gemm_floor_s(peaks, points, weight_bytes=1.0, fp8=True)
    floors = {
        "prefill_attention": prefill_attention_floor_s,
        "decode_attention": decode_attention_floor_s,
        "all_reduce": all_reduce_floor_s,
    }
    return floors[name](peaks, points)


def _kept_out(count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Pick rows by a multiplicative hash of their place (Knuth, TAOCP 3, 6.4), so that no size is favoured."""
    mixed = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)
    return np.asarray(mixed % np.uint64(_KEPT_OUT_EVERY) == 0)
