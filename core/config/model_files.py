"""What a model's own config.json says about its limits.

Owns the reading of that file, for checks before anything starts. A file that is absent, unusual or unreadable yields
nothing rather than an error: the engine has the last word about models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
_MAX_BYTES = 4 << 20  # a config.json is a few KiB


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model; None where its file does not say, or says it in an unusual way."""

    max_model_len: int | None  # tokens, without any stretching of positions
    kv_values_per_token: int | None  # numbers in the KV cache of one token, all layers, keys and values


def model_location(path: str, base: Path | None = None) -> str:
    """Say where a model is: the absolute folder if `path` is one, else `path` as it is, for it may be a hub id.

    A relative path starts at `base` (default: the working directory), else at the checkout, whose demonstration
    model is so found from anywhere.
    """
    for start in (base or Path.cwd(), _CHECKOUT):
        folder = os.path.abspath(os.path.join(start, os.path.expanduser(path)))
        if os.path.isdir(folder):
            return folder
    return path


def file_location(path: str, base: Path | None = None) -> str:
    """Say where a file is, absolute: below `base` (default: the working directory), else below the checkout.

    A file that is in neither place is where `base` would have it.
    """
    starts = (base or Path.cwd(), _CHECKOUT)
    places = [os.path.abspath(os.path.join(start, os.path.expanduser(path))) for start in starts]
    return next((place for place in places if os.path.isfile(place)), places[0])


def looks_like_folder(path: str) -> bool:
    """Whether `path` can only mean a folder; a hub id has one slash at most and does not begin with a dot."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or path.endswith("/")


def read_model_facts(path: str, base: Path | None = None) -> ModelFacts | None:
    """Read the facts of a local model; None for a hub id or a folder without a readable config.json."""
    file = Path(model_location(path, base)) / "config.json"
    try:
        if not os.path.isfile(file) or file.stat().st_size > _MAX_BYTES:
            return None
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(raw, dict):
        return None
    return ModelFacts(max_model_len=_max_model_len(raw), kv_values_per_token=_kv_values_per_token(raw))


def _max_model_len(raw: Mapping[str, object]) -> int | None:
    """Read the limit of positions, unless a rope scaling stretches it."""
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters")
    if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type", "default")) != "default":
        return None
    return _positive(raw, "max_position_embeddings")


def _kv_values_per_token(raw: Mapping[str, object]) -> int | None:
    """Count 2 x layers x KV heads x head size, for models whose layers all keep such a cache."""
    unusual = ("kv_lora_rank", "layer_types", "sliding_window", "attn_type_list", "cross_attention_layers")
    if any(raw.get(key) for key in unusual):
        return None
    layers = _positive(raw, "num_hidden_layers")
    heads = _positive(raw, "num_attention_heads")
    kv_heads = _positive(raw, "num_key_value_heads") or heads
    hidden = _positive(raw, "hidden_size")
    head_size = _positive(raw, "head_dim") or (hidden // heads if hidden and heads else None)
    if layers is None or kv_heads is None or head_size is None:
        return None
    return 2 * layers * kv_heads * head_size


def _positive(raw: Mapping[str, object], key: str) -> int | None:
    value = raw.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
