"""Shapes: parameters of published models, bytes per device, and what may be split how.

The parameter counts are those in the names or model cards of the models.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.latency.model_shape import Experts, Latent, ModelShape

LLAMA_8B = ModelShape("llama", 32, 4096, 32, 8, 128, 14336, 128256)
QWEN_30B = ModelShape("qwen", 48, 2048, 32, 4, 128, 0, 151936, experts=Experts(128, 8, 768, 0, 48))
DEEPSEEK = ModelShape(
    "deepseek",
    61,
    7168,
    128,
    128,
    128,
    18432,
    129280,
    experts=Experts(256, 8, 2048, 2048, 58),
    latent=Latent(1536, 512, 64, 128, 128),
    weight_bytes=1.0,
)


@pytest.mark.parametrize(("shape", "billions"), [(LLAMA_8B, 8.03), (QWEN_30B, 30.5), (DEEPSEEK, 671.0)])
def test_parameters_are_those_published(shape: ModelShape, billions: float) -> None:
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_weights_of_one_device_are_all_weights() -> None:
    assert LLAMA_8B.weights_on_device(1) == pytest.approx(2 * LLAMA_8B.parameters)


def test_weights_are_shared_by_tensor_and_pipeline() -> None:
    layers = LLAMA_8B.weights_on_device(1) - 4 * 128256 * 4096
    assert LLAMA_8B.weights_on_device(4) == pytest.approx(LLAMA_8B.weights_on_device(1) / 4)
    assert LLAMA_8B.weights_on_device(1, 2) == pytest.approx(layers / 2 + 2 * 128256 * 4096)


def test_kv_of_grouped_heads() -> None:
    assert LLAMA_8B.kv_bytes_per_token() == 32 * 2 * 8 * 128 * 2
    assert LLAMA_8B.kv_on_device(8, 1) == LLAMA_8B.kv_bytes_per_token() / 8


def test_heads_are_copied_where_there_are_more_devices_than_heads() -> None:
    assert QWEN_30B.kv_on_device(8, 1) == QWEN_30B.kv_on_device(4, 1)


def test_latent_attention_caches_one_vector_on_every_device() -> None:
    assert DEEPSEEK.kv_bytes_per_token() == 61 * (512 + 64) * 2
    assert DEEPSEEK.kv_on_device(8, 1) == DEEPSEEK.kv_bytes_per_token()


def test_windowed_layers_do_not_grow() -> None:
    half = ModelShape("half", 32, 4096, 32, 8, 128, 14336, 128256, window=128, windowed_layers=16)
    assert half.kv_bytes_per_token() == LLAMA_8B.kv_bytes_per_token() / 2


@pytest.mark.parametrize(("size", "fits"), [(1, True), (2, True), (3, False), (8, True), (16, True), (64, False)])
def test_tensor_sizes_must_divide_the_heads(size: int, fits: bool) -> None:
    assert LLAMA_8B.fits_tensor_parallel(size) is fits


@given(st.integers(1, 512), st.integers(1, 16), st.floats(1, 1e5))
def test_touched_experts_lie_between_one_token_s_and_all(count: int, per_token: int, tokens: float) -> None:
    experts = Experts(count, min(per_token, count), 64)
    touched = experts.touched(tokens)
    assert experts.per_token - 1e-6 <= touched <= count + 1e-6
    assert touched <= tokens * experts.per_token + 1e-6


@given(st.sampled_from([LLAMA_8B, QWEN_30B, DEEPSEEK]), st.sampled_from([1, 2, 4]))
def test_more_devices_never_hold_more_each(shape: ModelShape, size: int) -> None:
    assert shape.weights_on_device(2 * size) < shape.weights_on_device(size)
    assert shape.kv_on_device(2 * size, 1) <= shape.kv_on_device(size, 1)
