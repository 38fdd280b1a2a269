"""Grids: exact at knots, between their neighbours' values elsewhere, and recovered by the fit.

Invariants: inside a cell the value lies between the cell's corners; outside, it is the border's.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.grid import Grid, fit_grid

AXES = ((1.0, 4.0, 16.0), (10.0, 100.0))
GRID = Grid(AXES, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
sizes = st.floats(0.01, 1e6)


def test_knots_are_met_exactly() -> None:
    found = [GRID(a, b) for a in AXES[0] for b in AXES[1]]
    assert found == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def test_between_knots_it_is_linear_in_logarithms() -> None:
    assert GRID(2.0, 10.0) == pytest.approx(math.sqrt(1.0 * 3.0))


@given(sizes, sizes)
def test_values_stay_within_those_of_the_knots(a: float, b: float) -> None:
    assert 1.0 - 1e-9 <= GRID(a, b) <= 6.0 + 1e-9


@given(sizes, sizes)
def test_outside_it_is_the_border(a: float, b: float) -> None:
    inside = GRID(min(max(a, 1.0), 16.0), min(max(b, 10.0), 100.0))
    assert GRID(a, b) == pytest.approx(inside)


@given(sizes, sizes)
def test_one_point_is_evaluated_as_many_are(a: float, b: float) -> None:
    assert GRID(a, b) == pytest.approx(float(GRID.at(np.array([[a, b]]))[0]))


def test_the_fit_finds_the_grid_that_made_the_rows() -> None:
    random = np.random.default_rng(1)
    points = np.column_stack([random.uniform(1, 16, 500), random.uniform(10, 100, 500)])
    fitted = fit_grid(AXES, points, GRID.at(points))
    assert fitted.values == pytest.approx(GRID.values, rel=0.02)


def test_a_knot_without_rows_takes_its_neighbours_value() -> None:
    points = np.array([[1.0], [2.0]])
    fitted = fit_grid(((1.0, 2.0, 100.0),), points, np.array([3.0, 3.0]))
    assert fitted.values == pytest.approx((3.0, 3.0, 3.0))


@pytest.mark.parametrize(
    ("axes", "values"),
    [((), ()), (((1.0, 2.0),), (1.0,)), (((2.0, 1.0),), (1.0, 1.0)), (((0.0, 1.0),), (1.0, 1.0)), (((1.0,),), (0.0,))],
)
def test_a_broken_grid_is_refused(axes: tuple[tuple[float, ...], ...], values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="grid"):
        Grid(axes, values)
