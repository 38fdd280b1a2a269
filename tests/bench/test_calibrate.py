"""Calibration: recovers the factors that made the servings, and falls back from group to kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.calibrate import Calibration, Predictor, calibration_of, fit_groups, with_engine
from bench.silicon_points import Point, Worker
from core.errors import ConfigError
from core.latency.device import EngineCost
from core.latency.device_file import load_device
from core.latency.step import StepCost, Table

POINT = Point(
    model="Llama-3.1-8B",
    routed=False,
    device="h100-sxm",
    backend="vllm",
    weight_bytes=2.0,
    kv_value_bytes=2.0,
    prefill=Worker(1, 1),
    decode=Worker(1, 1),
    separate=False,
    prompt_tokens=1024,
    output_tokens=64,
    shortest=1.0,
    step_tokens=8192,
    concurrency=1,
    prefill_share=1.0,
    ttft_s=1.0,
    tpot_s=1.0,
)
TRUTH = EngineCost(prefill_scale=1.3, decode_scale=1.1, step_s=1e-3, request_s=0.03)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor({"h100-sxm": load_device("h100-sxm")})


@pytest.fixture(scope="module")
def servings(predictor: Predictor) -> list[Point]:
    """Servings that an engine with the factors TRUTH would have had."""
    made = []
    for length in (256, 1024, 4096):
        for concurrency in (1, 4, 16):
            point = replace(POINT, prompt_tokens=length, concurrency=concurrency)
            ttft_s, tpot_s = predictor.predict(point, TRUTH, mixed=True)
            made.append(replace(point, ttft_s=ttft_s, tpot_s=tpot_s))
    return made


def test_the_fit_predicts_what_it_did_not_see(predictor: Predictor, servings: list[Point]) -> None:
    found = fit_groups(predictor, servings[::2])
    for point in servings[1::2]:
        calibration = calibration_of(found, point)
        ttft_s, tpot_s = predictor.predict(point, calibration.engine, calibration.mixed)
        assert ttft_s == pytest.approx(point.ttft_s, rel=0.1)
        assert tpot_s == pytest.approx(point.tpot_s, rel=0.05)


def test_an_unseen_group_takes_its_kind_and_an_unseen_kind_any() -> None:
    found = {
        name: Calibration(EngineCost(step_s=step_s), True, 0.1, 0.1)
        for name, step_s in ((POINT.kind, 1.0), (POINT.group, 2.0))
    }
    assert calibration_of(found, POINT).engine.step_s == 2.0
    assert calibration_of(found, replace(POINT, model="Qwen3-32B")).engine.step_s == 1.0
    assert calibration_of(found, replace(POINT, backend="sglang")).engine.step_s == 1.0
    with pytest.raises(ConfigError, match="nothing was calibrated"):
        calibration_of({}, POINT)


def test_a_serving_on_an_unknown_device_is_refused(predictor: Predictor) -> None:
    with pytest.raises(ConfigError, match="v100"):
        predictor.predict(replace(POINT, device="v100"), TRUTH, mixed=True)


def test_more_prefill_workers_shorten_the_wait(predictor: Predictor) -> None:
    one = replace(POINT, separate=True, concurrency=32, prompt_tokens=4096)
    many = replace(one, prefill_share=4.0)
    ttfts = [predictor.predict(point, TRUTH, mixed=True)[0] for point in (one, many)]
    assert ttfts[1] < ttfts[0] / 2


def test_an_engine_scales_and_adds() -> None:
    cost = StepCost(Table.line(1.0, 1.0), Table.constant(0.0), Table.constant(2.0), Table.constant(0.0))
    added = with_engine(cost, EngineCost(prefill_scale=2.0, decode_scale=3.0, step_s=0.5))
    assert (added.prefill_s(4), added.decode_s(1, 1)) == pytest.approx((10.5, 6.5))


def test_smaller_steps_spread_the_first_tokens_of_a_burst(predictor: Predictor) -> None:
    burst = replace(POINT, concurrency=8)
    small = replace(burst, step_tokens=2048)
    assert predictor.predict(small, TRUTH, mixed=True)[0] < 0.8 * predictor.predict(burst, TRUTH, mixed=True)[0]


def test_the_factor_of_experts_is_that_of_routed_models_only(predictor: Predictor) -> None:
    routed = replace(POINT, model="gpt-oss-20b", routed=True, prompt_tokens=8192)
    slow = replace(TRUTH, expert_scale=6.0)
    for point, moves in ((POINT, False), (routed, True)):
        plain_s, slow_s = (predictor.predict(point, engine, mixed=True)[0] for engine in (TRUTH, slow))
        assert (slow_s > 1.1 * plain_s) is moves


def test_the_fit_finds_the_factor_of_experts_beside_the_others(predictor: Predictor) -> None:
    truth = replace(TRUTH, prefill_scale=1.2, expert_scale=3.5)
    made = []
    for length in (512, 2048, 8192):
        for concurrency in (1, 8):
            point = replace(
                POINT, model="gpt-oss-20b", routed=True, prompt_tokens=length, concurrency=concurrency, shortest=0.8
            )
            ttft_s, tpot_s = predictor.predict(point, truth, mixed=True)
            made.append(replace(point, ttft_s=ttft_s, tpot_s=tpot_s))
    found = fit_groups(predictor, made)
    group, kind = found[made[0].group].engine, found[made[0].kind].engine
    assert group.expert_scale == kind.expert_scale
    assert group.expert_scale * group.prefill_scale == pytest.approx(3.5 * 1.2, rel=0.15)
