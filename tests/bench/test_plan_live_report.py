"""Predicted against measured: shares, intervals and what they cover."""

from __future__ import annotations

import numpy as np
import pytest

from bench.plan_live_report import (
    Prediction,
    Served,
    attainment,
    corrected_by,
    predict,
    report,
    request_coverage,
    rows_csv,
    step_lines,
    window_coverage,
)
from core.latency.profile import EngineProfile, ShapeProfile
from core.latency.step import Step, StepCost, Table
from engine.step_clock import TracedStep
from sim.cluster import ClusterSpec, Mode, PoolSpec
from sim.outcome import Target
from sim.workload import Workload

COST = StepCost(Table.line(1e-3, 1e-3), Table.constant(0.0), Table.constant(0.01), Table.constant(1e-6))
TARGET = Target("chat", ttft_s=1.0, tpot_s=0.1)


def served(ttft_s: list[float], tpot_s: float = 0.05) -> Served:
    return Served(np.array(ttft_s), np.full(len(ttft_s), tpot_s))


def predicted(*draws: list[float]) -> Prediction:
    return Prediction("p", served(draws[0]), tuple(served(draw) for draw in draws))


def trace_at(*arrived_s: float) -> Workload:
    ones = np.ones(len(arrived_s), np.int64)
    return Workload("t", np.array(arrived_s), 100 * ones, 10 * ones)


def test_both_targets_count() -> None:
    seen = Served(np.array([0.5, 0.5, 2.0]), np.array([0.05, 0.2, 0.05]))
    assert attainment(seen, TARGET) == pytest.approx(1 / 3)
    assert attainment(seen, TARGET, 2.0) == 1.0


def test_a_request_is_covered_by_its_own_interval() -> None:
    prediction = predicted([1.0, 10.0], [2.0, 20.0])
    assert request_coverage(prediction, served([1.5, 15.0]), "ttft_s") == 1.0
    assert request_coverage(prediction, served([15.0, 1.5]), "ttft_s") == 0.0
    assert request_coverage(prediction, served([1.5, 1.5]), "ttft_s") == 0.5


def test_a_window_is_covered_by_the_interval_of_its_mean() -> None:
    prediction = predicted([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    # The first two arrive in one window: their mean counts.
    assert window_coverage(prediction, served([0.5, 2.5, 9.0]), trace_at(0.0, 1.0, 11.0), "ttft_s") == 0.5


def cluster(prefill_error: float) -> tuple[ClusterSpec, EngineProfile]:
    cost = StepCost(Table.line(0.0, 1e-4), Table.constant(0.0), Table.constant(0.01), Table.constant(0.0))
    shape = ShapeProfile(1, 1, cost, 100_000, prefill_error, 0.0)
    pool = PoolSpec(1, cost, 100_000, max_num_batched_tokens=512)
    return ClusterSpec(Mode.ONE_POOL_CHUNKED, pool), EngineProfile("m", "d", "e", "s", (shape,), 100)


def test_the_interval_is_as_wide_as_the_error_of_the_fit() -> None:
    spread = []
    for error in (0.0, 0.1):
        prediction = predict("p", *cluster(error), trace_at(0.0, 5.0), TARGET)
        low, high = prediction.interval(lambda each: float(each.ttft_s.mean()))
        assert low - 1e-9 <= 0.01 <= high + 1e-9
        spread.append((high - low) / 0.01)
    assert spread[0] == pytest.approx(0.0, abs=1e-9)
    # The 5 % and 95 % quantiles of a normal law are 1.64 deviations away.
    assert spread[1] == pytest.approx(2 * 1.64 * 0.1, rel=0.3)


def test_the_report_names_what_was_predicted_measured_and_covered() -> None:
    prediction, seen = predicted([0.5, 0.6], [0.7, 0.8]), served([0.55, 1.65])
    text = "\n".join(report([prediction], [seen], trace_at(0.0, 1.0), TARGET))
    assert "| p | TTFT mean | 550 | 560 - 740 | 1100 | -50% | no |" in text
    assert "| p | attainment, % | 100.0 | 100.0 - 100.0 | 50.0 | +50.0 points | no |" in text
    assert "TTFT of 50%" in text


def test_rows_hold_prediction_and_measurement_of_each_request() -> None:
    text = rows_csv({"a": predicted([0.5, 0.6])}, {"a": served([0.7, 0.8])}, trace_at(0.0, 1.5))
    header, *rows = text.splitlines()
    assert [dict(zip(header.split(","), row.split(","), strict=True))["ttft_s"] for row in rows] == ["0.7", "0.8"]
    assert rows[1].startswith("a,1.5,100,10,0.6,0.8,")


def test_live_steps_are_compared_by_kind() -> None:
    cost = StepCost(Table.line(0.0, 1e-3), Table.constant(0.0), Table.constant(0.01), Table.constant(0.0))
    steps = [
        TracedStep(0.0, 0.12, Step(100, 1, 5000.0)),
        TracedStep(1.0, 1.011, Step(decode_seqs=1, context_tokens=9)),
    ]
    lines = list(step_lines(cost, steps))
    assert "1 prefill steps: median 1.20" in lines[1]
    assert "1 decode steps: median 1.10" in lines[2]
    assert len(lines) == 3


def test_correction_is_what_steps_took_over_what_was_predicted() -> None:
    profile = EngineProfile("m", "d", "e", "s", (ShapeProfile(1, 1, COST, 9000, 0.1, 0.1),), 100, 32)
    prefill, decode = Step(100, 1, 5000.0), Step(decode_seqs=2, context_tokens=50)
    steps = [
        TracedStep(0.0, 1.2 * COST.seconds(prefill), prefill),
        TracedStep(5.0, 5.0 + 0.9 * COST.seconds(decode), decode),
        TracedStep(9.0, 99.0, Step(10, 1, 50.0, 1, 10)),  # mixed: says neither
    ]
    cost = corrected_by(profile, steps).shape(1).cost
    assert cost.seconds(prefill) == pytest.approx(1.2 * COST.seconds(prefill))
    assert cost.seconds(decode) == pytest.approx(0.9 * COST.seconds(decode))
    assert corrected_by(profile, []) == profile
