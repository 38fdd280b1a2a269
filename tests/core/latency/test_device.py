"""Derived costs: known sums, room for KV, the sizes on offer, and what must hold of any model on a shipped GPU.

Invariants: times are positive and never fall with tokens, sequences or context; more devices never slow a prefill of
many tokens; a step of a mixed batch is never shorter than its decode part.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from core.latency.device import EngineCost, derive, engine_profile, kv_capacity_tokens, step_cost
from core.latency.device_file import list_devices, load_device
from core.latency.model_shape import Experts, Latent, ModelShape
from core.latency.step import Step

H100 = load_device("h100-sxm")
LLAMA_8B = ModelShape("llama-8b", 32, 4096, 32, 8, 128, 14336, 128256, max_model_len=131072)
LLAMA_70B = ModelShape("llama-70b", 80, 8192, 64, 8, 128, 28672, 128256, weight_bytes=1.0)
ROUTED = ModelShape("routed", 48, 2048, 32, 4, 128, 0, 151936, experts=Experts(128, 8, 768, 0, 48))
LATENT = ModelShape("latent", 24, 2048, 32, 32, 128, 8192, 102400, latent=Latent(0, 512, 64, 128, 128))
WINDOWED = replace(LLAMA_8B, name="windowed", window=128, windowed_layers=16)
SHAPES = (LLAMA_8B, LLAMA_70B, ROUTED, LATENT, WINDOWED)
IDEAL = EngineCost()
shapes = st.sampled_from(SHAPES)


def test_a_decode_step_takes_about_the_reading_of_the_weights() -> None:
    step_s = step_cost(H100, LLAMA_8B, tensor_parallel=1, engine=IDEAL).decode_s(1, 1)
    floor_s = LLAMA_8B.weights_on_device(1) / 3.35e12
    assert floor_s < step_s < 1.6 * floor_s


def test_a_long_prefill_runs_at_a_fair_share_of_the_peak() -> None:
    flops = 2 * LLAMA_8B.parameters * 8192
    share = flops / step_cost(H100, LLAMA_8B, tensor_parallel=1, engine=IDEAL).prefill_s(8192) / 989.4e12
    assert 0.4 < share < 0.9


def test_a_measured_serving_of_llama_70b_is_met() -> None:
    # Mean TPOT at 4 in flight, 1,024 tokens in and out, fp8, two H100: 17.4 ms (silicon sample, AIConfigurator).
    step_s = step_cost(H100, LLAMA_70B, tensor_parallel=2, engine=IDEAL).decode_s(4, 4 * 1400)
    assert step_s == pytest.approx(17.4e-3, rel=0.1)


def test_what_the_engine_adds() -> None:
    plain = step_cost(H100, LLAMA_8B, tensor_parallel=1, engine=IDEAL)
    added = step_cost(
        H100, LLAMA_8B, tensor_parallel=1, engine=EngineCost(prefill_scale=2.0, decode_scale=3.0, step_s=0.5)
    )
    assert added.prefill_s(100) == pytest.approx(2 * plain.prefill_s(100) + 0.5)
    assert added.decode_s(7, 700) == pytest.approx(3 * plain.decode_s(7, 700) + 0.5)


def test_room_for_kv_is_what_weights_leave() -> None:
    tokens = kv_capacity_tokens(H100, LLAMA_8B, tensor_parallel=1)
    assert tokens == pytest.approx((0.9 * 80e9 - 3e9 - 16.06e9) / 131072, rel=0.01)
    assert kv_capacity_tokens(H100, LLAMA_8B, tensor_parallel=1, utilization=0.5) < tokens


def test_a_profile_offers_the_sizes_that_divide_and_fit() -> None:
    profile = engine_profile(H100, LLAMA_8B)
    assert [(s.tensor_parallel, s.pipeline_parallel) for s in profile.shapes] == [
        (tp, pp) for tp in (1, 2, 4, 8) for pp in (1, 2)
    ]
    assert (profile.model, profile.device, profile.max_model_len) == ("llama-8b", "h100-sxm", 131072)
    assert profile.kv_bytes_per_token == 131072
    assert profile.shape(2) == derive(H100, LLAMA_8B, tensor_parallel=2)


def test_sizes_too_small_for_the_weights_are_not_offered() -> None:
    sizes = [(s.tensor_parallel, s.pipeline_parallel) for s in engine_profile(H100, LLAMA_70B).shapes]
    assert (1, 1) not in sizes
    assert (2, 1) in sizes


def test_heads_that_do_not_divide_are_not_split() -> None:
    odd = replace(LLAMA_8B, heads=28, kv_heads=4, hidden=3584)
    assert {s.tensor_parallel for s in engine_profile(H100, odd).shapes} == {1, 2, 4}


def test_a_model_that_fits_nowhere_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="take a larger GPU"):
        engine_profile(load_device("l40s"), replace(LLAMA_70B, weight_bytes=2.0), max_tensor_parallel=1)


@pytest.mark.parametrize("name", list_devices())
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_every_shipped_device_serves_every_kind_of_model(name: str, shape: ModelShape) -> None:
    for worker in engine_profile(load_device(name), shape).shapes:
        times = [worker.cost.prefill_s(1000), worker.cost.decode_s(16, 16_000)]
        assert all(math.isfinite(t) and 0 < t < 60 for t in times)


@settings(max_examples=20, deadline=None)
@given(shapes, st.sampled_from([1, 2, 4]), st.integers(1, 20_000), st.integers(1, 1000), st.integers(1, 8000))
def test_more_work_takes_longer(shape: ModelShape, tp: int, tokens: int, seqs: int, context: int) -> None:
    cost = step_cost(H100, shape, tensor_parallel=tp)
    assert 0 < cost.prefill_s(tokens) <= cost.prefill_s(2 * tokens)
    assert 0 < cost.decode_s(seqs, seqs * context) <= cost.decode_s(seqs, 2 * seqs * context)
    alone, mixed = Step(decode_seqs=seqs, context_tokens=seqs), Step(tokens, 1, 1.0, seqs, seqs)
    assert cost.seconds(mixed) >= cost.seconds(alone)


@settings(max_examples=10, deadline=None)
@given(shapes, st.sampled_from([1, 2, 4]))
def test_more_devices_prefill_faster(shape: ModelShape, tp: int) -> None:
    few, many = (step_cost(H100, shape, tensor_parallel=n).prefill_s(8192) for n in (tp, 2 * tp))
    assert many < few


def test_experts_shared_by_several_workers_are_read_in_part() -> None:
    own = step_cost(H100, ROUTED, tensor_parallel=1, engine=IDEAL)
    shared = step_cost(H100, ROUTED, tensor_parallel=1, expert_devices=8, engine=IDEAL)
    assert shared.decode_s(64, 64) < own.decode_s(64, 64)
    room = [kv_capacity_tokens(H100, ROUTED, tensor_parallel=1, expert_devices=n) for n in (1, 8)]
    assert room[0] < room[1]
