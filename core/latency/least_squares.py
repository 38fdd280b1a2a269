"""Least squares with coefficients that must not be negative.

Owns the arithmetic, robust against outliers. Must not know what is fitted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Huber's constant, and the factor that makes the median absolute residual a standard deviation of a normal error.
_HUBER, _MAD_TO_SIGMA = 1.345, 1.4826
_EXACT = 1e-9  # residuals of this size are rounding, not outliers
_ROUNDS = 4


def non_negative(matrix: Floats, target: Floats) -> Floats:
    """Return the x >= 0 that minimises |matrix @ x - target|.

    The active set method of Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23, on columns scaled
    to one length.
    """
    length = np.linalg.norm(matrix, axis=0)
    scale = np.where(length > 0, length, 1.0)
    scaled = matrix / scale
    gram, moment = scaled.T @ scaled, scaled.T @ target
    width = len(moment)
    x, free = np.zeros(width), np.zeros(width, np.bool_)
    tolerance = 1e-12 * max(1.0, float(np.abs(moment).max(initial=0.0)))
    for _ in range(3 * width):
        gradient = np.where(free | (length == 0), -np.inf, moment - gram @ x)
        if not width or gradient.max() <= tolerance:
            break
        free[int(gradient.argmax())] = True
        x = _descend(gram, moment, x, free)
    result: Floats = x / scale
    return result


def _descend(gram: Floats, moment: Floats, x: Floats, free: NDArray[np.bool_]) -> Floats:
    """Solve for the free columns; fix those that would turn negative, one bound after another."""
    while True:
        wanted = np.zeros_like(x)
        wanted[free] = np.linalg.lstsq(gram[np.ix_(free, free)], moment[free], rcond=1e-12)[0]
        below = free & (wanted <= 0)
        if not below.any():
            return wanted
        share = float(np.min(x[below] / np.maximum(x[below] - wanted[below], 1e-300)))
        x = np.where(free, x + share * (wanted - x), 0.0)
        free &= x > 1e-15
        x = np.where(free, x, 0.0)


def robust_non_negative(matrix: Floats, target: Floats) -> Floats:
    """As non_negative, but rows far from the rest weigh less (Huber, by iterated weights)."""
    x = non_negative(matrix, target)
    for _ in range(_ROUNDS):
        residual = np.abs(matrix @ x - target)
        bound = _HUBER * max(_MAD_TO_SIGMA * float(np.median(residual)), _EXACT)
        if residual.max() <= bound:
            break
        root = np.sqrt(np.minimum(1.0, bound / np.maximum(residual, 1e-300)))
        x = non_negative(matrix * root[:, None], target * root)
    return x
