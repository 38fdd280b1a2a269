"""The shape of a small Llama and the configuration files that state it.

Owns config.json and generation_config.json of a model folder. It must not know how the weights come about.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.demo_model.tokenizer import BEGIN_ID, END_ID, MAX_POSITIONS, PAD_ID, VOCAB_SIZE

ConfigValue = str | int | float | bool | list[str] | None
ROPE_THETA: Final = 10000.0


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes of a Llama. vLLM on a CPU runs head sizes of 32, 64, 96, 128 and more; best stay with 64."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_size: int = 64
    vocab: int = VOCAB_SIZE
    max_positions: int = MAX_POSITIONS
    tied: bool = False
    dtype: str = "bfloat16"

    @property
    def num_parameters(self) -> int:
        """Count of all weights, the embedding once if it is tied to the output."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocab * self.hidden * (1 if self.tied else 2)

    def config(self) -> Mapping[str, ConfigValue]:
        """Return the content of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": ROPE_THETA,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "bos_token_id": BEGIN_ID,
            "eos_token_id": END_ID,
            "pad_token_id": PAD_ID,
            "use_cache": True,
            "dtype": self.dtype,
        }


def write_config(folder: Path, shape: LlamaShape, sampling: Mapping[str, ConfigValue]) -> None:
    """Write config.json, and generation_config.json with the default `sampling` values, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ids: Mapping[str, ConfigValue] = {
        "bos_token_id": BEGIN_ID,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
    }
    _write_json(folder / "config.json", shape.config())
    _write_json(folder / "generation_config.json", {**ids, **sampling})


def _write_json(file: Path, content: Mapping[str, ConfigValue]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
