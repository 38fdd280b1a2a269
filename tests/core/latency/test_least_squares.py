"""Non-negative least squares.

Invariants: no coefficient is negative; no step along a permitted direction makes the sum of squares smaller (the
conditions of Karush, Kuhn and Tucker).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.least_squares import non_negative, robust_non_negative


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 8))
def test_the_result_is_optimal_among_the_permitted(seed: int, rows: int, width: int) -> None:
    random = np.random.default_rng(seed)
    matrix, target = random.normal(size=(rows, width)), random.normal(size=rows)
    x = non_negative(matrix, target)
    gradient = matrix.T @ (matrix @ x - target)
    assert (x >= 0).all()
    assert gradient.min() >= -1e-7  # nothing at zero wants to grow
    assert np.abs(gradient[x > 1e-12]).max(initial=0.0) <= 1e-7  # nothing else wants to move


def test_a_permitted_truth_is_found() -> None:
    matrix = np.random.default_rng(1).uniform(size=(40, 5))
    truth = np.array([0.0, 1e-6, 2.0, 0.0, 3e3])
    assert non_negative(matrix, matrix @ truth) == pytest.approx(truth, rel=1e-6, abs=1e-9)


def test_columns_of_zeros_and_equal_columns_do_no_harm() -> None:
    column = np.arange(1.0, 6.0)
    x = non_negative(np.column_stack([column, column, np.zeros(5)]), 3.0 * column)
    assert x[0] + x[1] == pytest.approx(3.0)
    assert x[2] == 0.0


def test_an_outlier_hardly_moves_the_robust_result() -> None:
    random = np.random.default_rng(2)
    x = np.linspace(1.0, 10.0, 60)
    target = 2.0 + 3.0 * x + random.normal(scale=0.05, size=60)
    target[30] *= 20.0
    matrix = np.column_stack([np.ones_like(x), x])
    assert robust_non_negative(matrix, target) == pytest.approx([2.0, 3.0], rel=0.05)
    assert non_negative(matrix, target)[0] > 5.0
