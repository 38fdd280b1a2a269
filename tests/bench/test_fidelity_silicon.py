"""The report: medians by group, what lies inside the interval, the verdict on the target, and errors of the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.calibrate import Calibration, Predictor
from bench.fidelity_silicon import Judged, factors, judge, main, table
from bench.silicon_points import Point, Worker
from core.latency.device import EngineCost
from core.latency.device_file import load_device

HALF = Worker(1, 1)
POINT = Point("Qwen3-8B", False, "h100-sxm", "vllm", 2.0, 2.0, HALF, HALF, False, 512, 32, 1.0, 8192, 2, 1.0, 1.0, 1.0)
CALIBRATION = Calibration(EngineCost(), True, 0.2, 0.1)


def test_errors_are_relative_and_deviations_in_spreads() -> None:
    predictor = Predictor({"h100-sxm": load_device("h100-sxm")})
    ttft_s, tpot_s = predictor.predict(POINT, CALIBRATION.engine, CALIBRATION.mixed)
    judged = judge(predictor, {POINT.group: CALIBRATION}, replace(POINT, ttft_s=ttft_s / 2, tpot_s=tpot_s))
    assert (judged.ttft_error, judged.tpot_error) == pytest.approx((1.0, 0.0))
    assert judged.ttft_deviations == pytest.approx(0.6931 / 0.2, rel=1e-3)


def test_the_table_tells_medians_and_coverage() -> None:
    lines = table([Judged(POINT, 0.3, 0.1, 2.0, 1.0), Judged(POINT, 0.1, 0.05, 1.0, 1.0)])
    whole = next(line for line in lines if line.startswith("all"))
    assert whole.split()[1:] == ["2", "20.0%", "7.5%", "10.0%", "TTFT", "50%,", "TPOT", "100%"]
    assert lines[-1].endswith("missed")
    assert table([Judged(POINT, 0.01, 0.01, 0.1, 0.1)])[-1].endswith("kept")


def test_factors_name_every_group() -> None:
    assert [line.split()[0] for line in factors({"g": CALIBRATION})[1:]] == ["g"]


def test_a_missing_file_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent.csv")]) == 2
    assert "absent.csv" in capsys.readouterr().err


def test_help_tells_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--report" in capsys.readouterr().out
