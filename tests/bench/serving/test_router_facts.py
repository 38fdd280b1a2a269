"""Status and plan are read as they are written, and other forms are named as such."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from bench.serving.endpoint import endpoint
from bench.serving.proof import Calibration, RatePoint
from bench.serving.router_facts import calibration_in, plan_in, read_calibration, read_plan
from bench.serving.session import opened
from core.errors import BatonError, ConfigError
from sim.plan import Interval
from tests.support.http_mocks import mock_server

PLAN = {
    "rate": 2.0,
    "best": {
        "gpus": 3,
        "goodput": {"low": 1.0, "mid": 2.0, "high": None},
        "attainment": {"fast": {"low": 0.9, "mid": 0.95, "high": 1.0}},
    },
    "curve": [{"rate": 1.0, "goodput": 1.0, "attainment": {"fast": 1.0}}],
}


def test_a_plan() -> None:
    found = plan_in(PLAN)
    assert found is not None
    assert (found.devices, found.safe_rate) == (3, 2.0)
    assert replace(found, rate=None).safe_rate == 1.0
    assert replace(found, rate=None, goodput=Interval(0.0, 1.0, 2.0)).safe_rate is None
    assert (found.rate, found.goodput) == (2.0, Interval(1.0, 2.0, math.inf))
    assert found.attainment == {"fast": Interval(0.9, 0.95, 1.0)}
    assert found.curve == (RatePoint(1.0, {"fast": 1.0}, 1.0),)
    assert plan_in({**PLAN, "best": None}) is None


def test_plans_on_disk(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    assert read_plan(tmp_path) is not None
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(BatonError, match="another form"):
        read_plan(tmp_path)


def test_a_status() -> None:
    told = {"quantity": "ttft", "coverage": 0.91, "trusted": True, "reason": "", "outcomes": 9, "refuted": False}
    told |= {"band_low": 0.95, "band_high": 1.0}
    (found,) = calibration_in({"classes": [{"name": "fast", "predictions": [told]}]})
    assert found == Calibration("fast", "ttft", 0.91, True, "", 9, (0.95, 1.0))
    assert not found.is_covered


async def test_what_is_no_baton_router_is_refused() -> None:
    async with mock_server() as mock, opened(endpoint(mock.url)) as session:
        with pytest.raises(ConfigError, match="no Baton router"):
            await read_calibration(session)
