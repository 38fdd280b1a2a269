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


PUBLISHED: dict[str, tuple[float, str]] = {  # billions of parameters, as published; the keys that matter
    "llama3-8b": (
        8.03,
        '{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, '
        '"num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256, '
        '"tie_word_embeddings": false}',
    ),
    "llama3.2-1b": (
        1.236,
        '{"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, '
        '"num_hidden_layers": 16, "num_key_value_heads": 8, "vocab_size": 128256, '
        '"tie_word_embeddings": true, "head_dim": 64}',
    ),
    "qwen2.5-7b": (
        7.616,
        '{"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, '
        '"num_hidden_layers": 28, "num_key_value_heads": 4, "vocab_size": 152064, '
        '"tie_word_embeddings": false, "sliding_window": 131072, "use_sliding_window": false}',
    ),
    "qwen3-0.6b": (
        0.596,
        '{"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, '
        '"num_hidden_layers": 28, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, '
        '"tie_word_embeddings": true}',
    ),
    "qwen3-30b-a3b": (
        30.53,
        '{"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, '
        '"moe_intermediate_size": 768, "num_attention_heads": 32, "num_hidden_layers": 48, '
        '"num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128, '
        '"num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [], '
        '"tie_word_embeddings": false}',
    ),
    "qwen1.5-moe-a2.7b": (
        14.3,
        '{"model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, '
        '"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_attention_heads": 16, '
        '"num_hidden_layers": 24, "num_key_value_heads": 16, "vocab_size": 151936, "num_experts": 60, '
        '"num_experts_per_tok": 4, "decoder_sparse_step": 1, "tie_word_embeddings": false}',
    ),
    "mistral-7b": (
        7.24,
        '{"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, '
        '"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 32000, '
        '"sliding_window": 4096, "tie_word_embeddings": false}',
    ),
    "gemma-2b": (
        2.506,
        '{"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8, '
        '"num_hidden_layers": 18, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000}',
    ),
    "gemma2-9b": (
        9.24,
        '{"model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, '
        '"num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "head_dim": 256, '
        '"vocab_size": 256000, "sliding_window": 4096}',
    ),
    "gemma3-1b": (
        1.0,
        '{"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, '
        '"num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "head_dim": 256, '
        '"vocab_size": 262144, "sliding_window": 512, "sliding_window_pattern": 6}',
    ),
    "phi-2": (
        2.78,
        '{"model_type": "phi", "hidden_size": 2560, "intermediate_size": 10240, "num_attention_heads": 32, '
        '"num_hidden_layers": 32, "num_key_value_heads": 32, "vocab_size": 51200, '
        '"tie_word_embeddings": false}',
    ),
    "phi3-mini": (
        3.82,
        '{"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32, '
        '"num_hidden_layers": 32, "num_key_value_heads": 32, "vocab_size": 32064, '
        '"tie_word_embeddings": false, "sliding_window": 2047}',
    ),
    "mixtral": (
        46.7,
        '{"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, '
        '"num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 32000, '
        '"num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": false}',
    ),
    "deepseek-v2-lite": (
        15.7,
        '{"model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, '
        '"moe_intermediate_size": 1408, "num_attention_heads": 16, "num_hidden_layers": 27, '
        '"num_key_value_heads": 16, "vocab_size": 102400, "n_routed_experts": 64, "n_shared_experts": 2, '
        '"num_experts_per_tok": 6, "first_k_dense_replace": 1, "kv_lora_rank": 512, "q_lora_rank": null, '
        '"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "tie_word_embeddings": false}',
    ),
    "deepseek-v3": (
        671.0,
        '{"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, '
        '"moe_intermediate_size": 2048, "num_attention_heads": 128, "num_hidden_layers": 61, '
        '"num_key_value_heads": 128, "vocab_size": 129280, "n_routed_experts": 256, "n_shared_experts": 1, '
        '"num_experts_per_tok": 8, "first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536, '
        '"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "tie_word_embeddings": false}',
    ),
    "gpt-oss-20b": (
        20.9,
        '{"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, '
        '"num_attention_heads": 64, "num_hidden_layers": 24, "num_key_value_heads": 8, "head_dim": 64, '
        '"vocab_size": 201088, "num_local_experts": 32, "num_experts_per_tok": 4, "experts_per_token": 4, '
        '"sliding_window": 128, "tie_word_embeddings": false, '
        '"layer_types": ' + json.dumps(["sliding_attention", "full_attention"] * 12) + "}",
    ),
    "gpt-oss-120b": (
        116.8,
        '{"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, '
        '"num_attention_heads": 64, "num_hidden_layers": 36, "num_key_value_heads": 8, "head_dim": 64, '
        '"vocab_size": 201088, "num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128, '
        '"tie_word_embeddings": false, '
        '"layer_types": ' + json.dumps(["sliding_attention", "full_attention"] * 18) + "}",
    ),
    "gpt2": (
        0.1244,
        '{"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}',
    ),
    "opt-125m": (
        0.1252,
        '{"model_type": "opt", "hidden_size": 768, "ffn_dim": 3072, "num_attention_heads": 12, '
        '"num_hidden_layers": 12, "vocab_size": 50272, "max_position_embeddings": 2048, '
        '"word_embed_proj_dim": 768}',
    ),
    "opt-13b": (
        12.85,
        '{"model_type": "opt", "hidden_size": 5120, "ffn_dim": 20480, "num_attention_heads": 40, '
        '"num_hidden_layers": 40, "vocab_size": 50272, "max_position_embeddings": 2048}',
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_of_published_models_are_met(name: str) -> None:
    billions, text = PUBLISHED[name]
    assert shape_from_config(text, name).parameters / 1e9 == pytest.approx(billions, rel=0.02)


def test_gemma_mixes_windows_where_the_file_does_not_say() -> None:
    shape = shape_from_config(PUBLISHED["gemma2-9b"][1])
    assert (shape.windowed_layers, shape.window, shape.tied) == (21, 4096, True)


@pytest.mark.parametrize("mark", [{"is_encoder_decoder": True}, {"ssm_cfg": {}}, {"mamba_d_state": 128}])
def test_what_is_no_decoder_is_refused_with_a_remedy(mark: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"no decoder-only transformer.*baton\.py profile"):
        shape_from_config(json.dumps(LLAMA | mark))


def test_an_unknown_family_counts_as_a_llama() -> None:
    known = shape_from_config(json.dumps(LLAMA), "x")
    assert shape_from_config(json.dumps(LLAMA | {"model_type": "brand_new"}), "x") == known
