"""An efficiency as a function of a few sizes: multilinear between knots, in logarithms, clamped outside.

Owns the value, its evaluation and its least-squares fit. Must not know what is measured (core.latency.device).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Pull of each knot towards its neighbours, as a weight beside the rows: it settles only knots with hardly any row.
_SMOOTHNESS = 0.02


@dataclass(frozen=True, slots=True)
class Grid:
    """A positive function of len(axes) positive sizes; the last axis varies fastest in `values`."""

    axes: tuple[tuple[float, ...], ...]  # the knots of each axis, strictly rising, positive
    values: tuple[float, ...]  # at the knots, positive

    def __post_init__(self) -> None:
        if not self.axes or len(self.values) != int(np.prod([len(axis) for axis in self.axes])):
            raise ValueError("a grid needs one value for each combination of knots")
        if any(axis[0] <= 0 or any(b <= a for a, b in itertools.pairwise(axis)) for axis in self.axes):
            raise ValueError("the knots of a grid must be positive and rise")
        if min(self.values) <= 0:
            raise ValueError("the values of a grid must be positive")

    def __call__(self, *sizes: float) -> float:
        """Evaluate at one point; as `at`, without its cost for arrays."""
        corners = [(0, 1.0)]  # flat index and weight of each corner of the cell
        for axis, size in zip(self.axes, sizes, strict=True):
            x = min(max(size, axis[0]), axis[-1])
            low = min(bisect_right(axis, x), max(len(axis) - 1, 1)) - 1
            if len(axis) == 1 or x == axis[low]:
                corners = [(flat * len(axis) + low, weight) for flat, weight in corners]
                continue
            share = math.log(x / axis[low]) / math.log(axis[low + 1] / axis[low])
            sides = ((low, 1.0 - share), (low + 1, share))
            corners = [(flat * len(axis) + i, weight * w) for flat, weight in corners for i, w in sides]
        return math.exp(sum(weight * math.log(self.values[flat]) for flat, weight in corners))

    def at(self, points: Floats) -> Floats:
        """Evaluate at points: (num_points, num_axes) -> (num_points,)."""
        logs = np.log(np.array(self.values))
        total = np.zeros(len(points))
        for knot, weight in _corners(self.axes, points):
            total += weight * logs[knot]
        exact: Floats = np.exp(total)
        return exact


def fit_grid(axes: tuple[tuple[float, ...], ...], points: Floats, targets: Floats) -> Grid:
    """Fit the grid to positive `targets` at `points` (num_points, num_axes), least squares of the relative error."""
    shape = tuple(len(axis) for axis in axes)
    size = int(np.prod(shape))
    normal, right = np.zeros((size, size)), np.zeros(size)
    corners = _corners(axes, points)
    logs = np.log(targets)
    for knot, weight in corners:
        np.add.at(right, knot, weight * logs)
        for other, other_weight in corners:
            np.add.at(normal, (knot, other), weight * other_weight)
    mean = float(logs.mean())
    index = np.arange(size).reshape(shape)
    for axis in range(len(axes)):
        left = np.take(index, range(shape[axis] - 1), axis).ravel()
        after = np.take(index, range(1, shape[axis]), axis).ravel()
        for a, b, sign in ((left, left, 1), (after, after, 1), (left, after, -1), (after, left, -1)):
            np.add.at(normal, (a, b), sign * _SMOOTHNESS)
    normal[np.diag_indices(size)] += 1e-9  # a lone knot without any row takes the mean
    solved = np.linalg.solve(normal, right + 1e-9 * mean)
    return Grid(axes, tuple(float(f"{v:.4g}") for v in np.exp(solved)))


def _corners(axes: tuple[tuple[float, ...], ...], points: Floats) -> list[tuple[NDArray[np.int64], Floats]]:
    """List, for each corner of the cells that hold the points, its flat index and weight."""
    lows, shares = [], []
    for column, axis in enumerate(axes):
        knots = np.log(np.array(axis))
        x = np.clip(np.log(points[:, column]), knots[0], knots[-1])
        low = np.clip(np.searchsorted(knots, x, "right") - 1, 0, max(len(axis) - 2, 0))
        step = knots[low + 1] - knots[low] if len(axis) > 1 else np.ones(len(x))
        lows.append(low)
        shares.append((x - knots[low]) / step)
    corners = []
    for corner in itertools.product((0, 1), repeat=len(axes)):
        flat, weight = np.zeros(len(points), np.int64), np.ones(len(points))
        for side, axis, low, share in zip(corner, axes, lows, shares, strict=True):
            flat = flat * len(axis) + np.minimum(low + side, len(axis) - 1)
            weight = weight * (share if side else 1 - share)
        corners.append((flat, weight))
    return corners
