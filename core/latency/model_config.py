"""Reads a ModelShape from the text of a Hugging Face config.json.

Owns the names that model families give to the same sizes. Must not know devices or where the file lies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from core.errors import ConfigError
from core.latency.model_shape import Experts, Latent, ModelShape

_UNGATED = frozenset({"opt", "gpt2", "gpt_neox", "gpt_bigcode", "bloom", "falcon", "phi", "starcoder2", "gptj"})
# Families whose output matrix is the embedding where their config.json does not say.
_TIED = frozenset({"gpt2", "opt", "bloom", "gemma", "gemma2", "gemma3"})
_ALTERNATING = {"gemma2": 2, "gemma3": 6}  # every so many layers one attends to all, where config.json does not say
_STATE_SPACE = ("ssm_cfg", "state_size", "mamba_d_state", "rwkv_version")  # keys of models without a growing KV cache
# Methods of quantisation whose width is not written beside them; microscaling adds a byte for each 32 values.
_METHOD_BITS = {"fp8": 8.0, "fbgemm_fp8": 8.0, "modelopt": 8.0, "mxfp4": 4.25, "modelopt_fp4": 4.5, "awq": 4.0}
_LINEAR_STATE_TOKENS = 128  # linear attention reads a state of about this many tokens' KV (head_dim x head_dim)

_Raw = Mapping[str, object]


def shape_from_config(text: str, name: str = "") -> ModelShape:
    """Read the shape; a family that is not known by name counts as a decoder like Llama, gated and untied.

    Raises ConfigError when the text is no config.json, lacks a size, or is of an encoder or state-space model.
    """
    try:
        whole = json.loads(text)
    except ValueError as exc:
        raise ConfigError(f"config.json of the model is not JSON ({exc}); take the one that ships with it") from exc
    if not isinstance(whole, dict):
        raise ConfigError("config.json of the model holds no object; take the one that ships with it")
    inner = next((whole[k] for k in ("text_config", "llm_config") if isinstance(whole.get(k), dict)), None)
    raw: _Raw = {**whole, **inner} if inner else whole
    if raw.get("is_encoder_decoder") is True or any(key in raw for key in _STATE_SPACE):
        raise ConfigError(
            f"config.json is of a {_family(raw) or 'model'} that is no decoder-only transformer: "
            "its cost cannot be derived, measure it with `python baton.py profile`"
        )
    hidden, heads = (
        _need(raw, "hidden_size", "n_embd", "n_embed", "d_model"),
        _need(raw, "num_attention_heads", "n_head"),
    )
    layers = _need(raw, "num_hidden_layers", "n_layer")
    kv_heads = _size(raw, "num_key_value_heads", "num_kv_heads") or (1 if raw.get("multi_query") else heads)
    head_dim = _size(raw, "head_dim") or hidden // heads
    experts = _experts(raw, layers)
    windowed, window = _windows(raw, layers)
    widths, attention_widths = _weight_bytes(raw)
    return ModelShape(
        name=name or str(whole.get("_name_or_path") or whole.get("model_type") or "model"),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_dense_width(raw, hidden, layers, experts),
        vocab=_need(raw, "vocab_size"),
        tied=raw.get("tie_word_embeddings", _family(raw) in _TIED) is True,
        gated=raw.get("model_type") not in _UNGATED,
        weight_bytes=widths,
        attention_weight_bytes=attention_widths,
        experts=experts,
        latent=_latent(raw),
        window=window,
        windowed_layers=windowed,
        max_model_len=_size(raw, "max_position_embeddings", "n_positions", "max_seq_len") or None,
    )


def _family(raw: _Raw) -> str:
    return str(raw.get("model_type", "")).removesuffix("_text")


def _size(raw: _Raw, *names: str) -> int:
    """Return the first of these that is a positive number; 0 if none is."""
    for name in names:
        value = raw.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _need(raw: _Raw, *names: str) -> int:
    value = _size(raw, *names)
    if not value:
        raise ConfigError(f"config.json of the model has no {' or '.join(names)}: a positive number is needed there")
    return value


def _experts(raw: _Raw, layers: int) -> Experts | None:
    count = _size(raw, "n_routed_experts", "num_local_experts", "num_experts")
    if count < 2:
        return None
    width = _size(raw, "moe_intermediate_size") or _need(raw, "moe_intermediate_size", "intermediate_size")
    shared = _size(raw, "shared_expert_intermediate_size", "shared_intermediate_size")
    shared = shared or _size(raw, "n_shared_experts") * width
    first = raw.get("first_k_dense_replace", 0)
    dense = first if isinstance(first, int) else 0
    listed = raw.get("mlp_only_layers")
    dense += len(listed) if isinstance(listed, list) else 0
    per_token = _need(raw, "num_experts_per_tok", "experts_per_token", "top_k_experts")
    return Experts(count, min(per_token, count), width, shared, max(0, layers - dense))


def _dense_width(raw: _Raw, hidden: int, layers: int, experts: Experts | None) -> int:
    if experts and experts.layers == layers:
        return 0
    return _size(raw, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size") or 4 * hidden


def _latent(raw: _Raw) -> Latent | None:
    rank = _size(raw, "kv_lora_rank")
    if not rank:
        return None
    return Latent(
        query_rank=_size(raw, "q_lora_rank"),
        kv_rank=rank,
        rope_dim=_need(raw, "qk_rope_head_dim"),
        nope_dim=_need(raw, "qk_nope_head_dim"),
        value_dim=_need(raw, "v_head_dim"),
    )


def _windows(raw: _Raw, layers: int) -> tuple[int, int]:
    """Return how many layers keep a bounded state, and how many tokens it is worth."""
    window, kinds = _size(raw, "sliding_window"), raw.get("layer_types")
    interval = _size(raw, "full_attention_interval")
    if isinstance(kinds, list) and kinds:
        linear, sliding = kinds.count("linear_attention"), kinds.count("sliding_attention")
        return (linear, _LINEAR_STATE_TOKENS) if linear else (sliding, window) if window else (0, 0)
    if interval > 1:
        return layers - layers // interval, _LINEAR_STATE_TOKENS
    if not window or raw.get("use_sliding_window") is False:
        return 0, 0
    pattern = _size(raw, "sliding_window_pattern") or _ALTERNATING.get(_family(raw), 0)
    return (layers - layers // pattern if pattern > 1 else layers), window


def _weight_bytes(raw: _Raw) -> tuple[float, float | None]:
    """Return the bytes of one weight, and of one in attention where that differs."""
    quant = raw.get("quantization_config") or raw.get("compression_config")
    if not isinstance(quant, dict):
        return 2.0, None
    bits = float(_size(quant, "bits", "w_bit", "weight_bits"))
    method = str(quant.get("quant_method", "")).lower()
    groups = quant.get("config_groups")
    if not bits and isinstance(groups, dict):
        weights = [g.get("weights") for g in groups.values() if isinstance(g, dict)]
        bits = float(max((_size(w, "num_bits") for w in weights if isinstance(w, dict)), default=0))
    if not bits and "FP4" in str(quant.get("quant_algo", "")).upper():
        bits = _METHOD_BITS["modelopt_fp4"]
    bits = bits or _METHOD_BITS.get(method, 16.0)
    # Microscaled and 4-bit checkpoints of routed models leave attention alone (gpt-oss, Kimi K2); others do not say.
    skipped = quant.get("modules_to_not_convert") or quant.get("ignore") or ()
    plain = isinstance(skipped, list) and any("attn" in str(module) for module in skipped)
    return bits / 8.0, 2.0 if plain else None
