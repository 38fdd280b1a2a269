"""How long bytes take between two devices: a latency, then a bandwidth that depends on the size.

Owns the model, its fit to measured times and the straight line that stands for it near one size. Must not know which
devices a plan connects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import ConfigError
from core.latency.least_squares import Floats, robust_non_negative
from core.latency.step import Table

_KNOTS = 12
_LEAST_SIZES = 3
_SPAN = 8.0  # a line stands for sizes from 1/8 of the one it is made for up to eight times it


def kv_bytes_per_token(*, layers: int, kv_heads: int, head_dim: int, value_bytes: float = 2.0) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    return round(2 * layers * kv_heads * head_dim * value_bytes)


@dataclass(frozen=True, slots=True)
class Line:
    """latency_s + bytes / bytes_per_s."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, num_bytes: float) -> float:
        """Return the time of one transfer."""
        return self.latency_s + num_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class TransferModel:
    """The time of one transfer by its bytes; never falls with the size."""

    by_bytes: Table  # bytes -> s
    error: float = 0.0  # root mean square of the relative error, on sizes kept out of the fit

    def seconds(self, num_bytes: float) -> float:
        """Return the time of one transfer."""
        return self.by_bytes(num_bytes)

    def line(self, around_bytes: float) -> Line:
        """Return the line that is nearest, by relative error, for transfers of about this size."""
        sizes = np.geomspace(around_bytes / _SPAN, around_bytes * _SPAN, 25)
        times = np.array([self.seconds(size) for size in sizes])
        matrix = np.column_stack([np.ones_like(sizes), sizes]) / times[:, None]
        latency_s, per_byte_s = robust_non_negative(matrix, np.ones_like(times))
        return Line(float(latency_s), 1.0 / float(per_byte_s) if per_byte_s > 0 else float("inf"))


def fit_transfer(points: Sequence[tuple[float, float]], *, folds: int = 5) -> TransferModel:
    """Fit (bytes, seconds) by least squares on relative error; repeats of a size count as their median.

    Raises ConfigError when too few sizes were measured.
    """
    by_size: dict[float, list[float]] = {}
    for num_bytes, seconds in points:
        if num_bytes > 0 and seconds > 0:
            by_size.setdefault(float(num_bytes), []).append(seconds)
    if len(by_size) < _LEAST_SIZES:
        raise ConfigError(f"transfers of {len(by_size)} sizes were measured; a fit needs {_LEAST_SIZES} or more")
    sizes = np.array(sorted(by_size))
    times = np.array([float(np.median(by_size[size])) for size in sizes])
    fold = np.arange(len(sizes)) % min(folds, len(sizes))
    relative = np.empty(len(sizes))
    for i in range(int(fold.max()) + 1):
        out = fold == i
        table = _fit(sizes[~out], times[~out])
        relative[out] = np.array([table(size) for size in sizes[out]]) / times[out] - 1.0
    return TransferModel(_fit(sizes, times), float(np.sqrt(np.mean(relative**2))))


def _fit(sizes: Floats, times: Floats) -> Table:
    at = np.geomspace(sizes[0], sizes[-1], min(_KNOTS, max(2, len(sizes) // 2)))
    ends = np.append(at[1:-1], np.inf)
    pieces = [np.clip(sizes, low, high) - low for low, high in zip(at[:-1], ends, strict=True)]
    basis = np.column_stack([np.ones_like(sizes), *pieces])
    x = robust_non_negative(basis / times[:, None], np.ones_like(times))
    values = x[0] + np.append(0.0, np.cumsum(x[1:] * np.diff(at)))
    return Table(tuple(float(v) for v in at), tuple(float(v) for v in values))
