"""What the comparison makes of its inputs; DistServe itself is not at hand in tests."""

from __future__ import annotations

import marshal
from pathlib import Path

import numpy as np
import pytest

from bench.distserve_parity import CONFIGS, Searched, furthest_apart, sped_up, write_dataset
from sim.workload import Workload

WORKLOAD = Workload("w", np.array([0.0, 1.0, 3.0]), np.array([5, 6, 7]), np.array([1, 2, 3]))


def test_the_nine_configurations_take_at_most_four_gpus() -> None:
    assert len(set(CONFIGS)) == 9
    assert all(p[0] * p[1] + d[0] * d[1] <= 4 for p, d in CONFIGS)


def test_the_winner_is_the_first_of_the_best() -> None:
    rates = [0.0] * 9
    rates[6] = rates[8] = 1.5625
    assert Searched(tuple(rates), 1.0).winner == "P tp2 pp1 + D tp1 pp1"


def test_times_are_divided_by_the_rate_and_nothing_else_changes() -> None:
    faster = sped_up(WORKLOAD, 2.0)
    assert faster.arrived_s.tolist() == [0.0, 0.5, 1.5]
    assert faster.prompt_tokens is WORKLOAD.prompt_tokens


def test_the_largest_relative_difference_counts() -> None:
    assert furthest_apart(np.array([1.0, 2.2]), np.array([1.0, 2.0])) == pytest.approx(0.1)


def test_a_dataset_reads_back_as_distserve_reads_it(tmp_path: Path) -> None:
    write_dataset(tmp_path, np.array([[5, 1], [6, 2], [7, 3]]))
    with (tmp_path / "sharegpt.ds").open("rb") as file:
        assert marshal.load(file)["reqs"] == [("", 5, 1), ("", 6, 2), ("", 7, 3)]
