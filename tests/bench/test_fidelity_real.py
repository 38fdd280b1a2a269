"""The replay of real requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.fidelity_real import Times, figures, main, missing_per_step, read_run, replay, slower
from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import Step, StepCost, Table
from sim.workload import Workload

_COST = StepCost(Table.line(0.010, 1e-4), Table.constant(0.0), Table.line(0.010, 1e-4), Table.constant(0.0))
_PROFILE = EngineProfile("m", "d", "e", "s", (ShapeProfile(1, 1, _COST, 100_000, 0.0, 0.0),), 1)
_WORKLOAD = Workload("w", np.array([0.0, 5.0]), np.array([100, 200]), np.array([11, 21]))


@pytest.mark.parametrize("step", [Step(10, 1, 50.0), Step(decode_seqs=4, context_tokens=9), Step(10, 1, 50.0, 4, 9)])
def test_every_kind_of_step_is_slower_by_the_same_time(step: Step) -> None:
    assert slower(_COST, 0.002).seconds(step) == pytest.approx(_COST.seconds(step) + 0.002)


def test_a_lone_request_takes_its_prefill_and_its_decode_steps() -> None:
    times = replay(_PROFILE, _WORKLOAD)
    assert times.ttft_s == pytest.approx([0.020, 0.030])
    assert times.tpot_s == pytest.approx([0.0101, 0.0101])
    assert times.e2e_s == pytest.approx([0.020 + 10 * 0.0101, 0.030 + 20 * 0.0101])


def test_the_missing_time_per_step_is_found() -> None:
    measured = replay(_PROFILE, _WORKLOAD, more_per_step_s=0.0015)
    assert missing_per_step(_PROFILE, _WORKLOAD, measured) == pytest.approx(0.0015, abs=1e-6)


def test_errors_are_relative_to_what_was_measured() -> None:
    ones = np.ones(10)
    judged = list(figures(Times(ones, 1.1 * ones, 0.5 * ones), Times(ones, ones, ones), slice(None)))
    assert [figure.error for figure in judged] == pytest.approx([0.1, 0.0, -0.5])


def test_a_run_starts_with_its_first_arrival(tmp_path: Path) -> None:
    file = tmp_path / "run.csv"
    file.write_text(
        "arrived_s,prompt_tokens,output_tokens,queue_s,ttft_s,e2e_s,tpot_s\n3.5,7,4,0,0.2,0.5,0.1\n1.5,5,2,0,0.1,0.2,0.1\n"
    )
    workload, measured = read_run(file)
    assert list(workload.arrived_s) == [0.0, 2.0]
    assert list(workload.prompt_tokens) == [5, 7]
    assert list(measured.e2e_s) == [0.2, 0.5]


def test_missing_data_is_an_error_that_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path)]) == 2
    assert "e2e-vllm019-rtxpro6000-llama-3.1-8b.csv: cannot be read" in capsys.readouterr().err
