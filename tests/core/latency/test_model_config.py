"""Reading shapes from config.json: the names of several families, quantisation, windows, and what is refused."""

from __future__ import annotations

import json

import pytest

from core.errors import ConfigError
from core.latency.model_config import shape_from_config
from core.latency.model_shape import Experts, Latent

LLAMA: dict[str, object] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


def test_a_llama() -> None:
    shape = shape_from_config(json.dumps(LLAMA), "llama-8b")
    assert shape.name == "llama-8b"
    assert (shape.kv_heads, shape.head_dim, shape.max_model_len) == (8, 128, 131072)
    assert shape.parameters / 1e9 == pytest.approx(8.03, rel=0.01)


def test_an_opt_has_two_matrices_and_as_many_kv_heads_as_heads() -> None:
    raw = {
        "model_type": "opt",
        "hidden_size": 5120,
        "ffn_dim": 20480,
        "num_attention_heads": 40,
        "num_hidden_layers": 40,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
    }
    shape = shape_from_config(json.dumps(raw))
    assert (shape.kv_heads, shape.gated, shape.tied) == (40, False, True)
    assert shape.parameters / 1e9 == pytest.approx(13.0, rel=0.02)


def test_a_routed_model_with_latent_attention() -> None:
    shape = shape_from_config(
        json.dumps(
            LLAMA
            | {
                "n_routed_experts": 64,
                "num_experts_per_tok": 6,
                "moe_intermediate_size": 1408,
                "n_shared_experts": 2,
                "first_k_dense_replace": 1,
                "kv_lora_rank": 512,
                "q_lora_rank": None,
                "qk_rope_head_dim": 64,
                "qk_nope_head_dim": 128,
                "v_head_dim": 128,
            }
        )
    )
    assert shape.experts == Experts(64, 6, 1408, 2816, 31)
    assert shape.latent == Latent(0, 512, 64, 128, 128)


def test_mixtral_names() -> None:
    shape = shape_from_config(json.dumps(LLAMA | {"num_local_experts": 8, "num_experts_per_tok": 2}))
    assert shape.experts == Experts(8, 2, 14336, 0, 32)
    assert shape.intermediate == 0
    assert shape.parameters / 1e9 == pytest.approx(46.7, rel=0.02)


def test_the_language_part_of_a_multimodal_model_counts() -> None:
    shape = shape_from_config(
        json.dumps({"model_type": "x", "text_config": LLAMA, "vision_config": {"hidden_size": 7}})
    )
    assert shape.hidden == 4096


@pytest.mark.parametrize(
    ("quantization", "weight_bytes", "attention"),
    [
        (None, 2.0, None),
        ({"quant_method": "fp8"}, 1.0, None),
        ({"quant_method": "awq", "bits": 4}, 0.5, None),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8}}}}, 1.0, None),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, 4.25 / 8, 2.0),
    ],
)
def test_quantisation(quantization: object, weight_bytes: float, attention: float | None) -> None:
    shape = shape_from_config(json.dumps(LLAMA | {"quantization_config": quantization}))
    assert (shape.weight_bytes, shape.attention_weight_bytes) == (weight_bytes, attention)


@pytest.mark.parametrize(
    ("changes", "windowed", "window"),
    [
        ({}, 0, 0),
        ({"sliding_window": 4096}, 32, 4096),
        ({"sliding_window": 4096, "use_sliding_window": False}, 0, 0),
        ({"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 16}, 16, 128),
        ({"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8}, 24, 128),
        ({"full_attention_interval": 4}, 24, 128),
    ],
)
def test_layers_with_bounded_state(changes: dict[str, object], windowed: int, window: int) -> None:
    shape = shape_from_config(json.dumps(LLAMA | changes))
    assert (shape.windowed_layers, shape.window) == (windowed, window)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"hidden_size": 8}', json.dumps(LLAMA | {"vocab_size": "many"})])
def test_what_is_no_config_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        shape_from_config(text)
