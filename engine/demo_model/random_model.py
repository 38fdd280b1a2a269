"""Model folders with random weights: small Llamas and LoRA adapters for tests and benchmarks.

Owns their shapes and their determinism (equal arguments give equal weights). Their text means nothing; it has
to depend on every token of the prompt, so that a lost or mixed-up KV block changes what a greedy run prints.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from safetensors.torch import save_file

from engine.demo_model.shape import LlamaShape, write_config
from engine.demo_model.tokenizer import MAX_POSITIONS, VOCAB_SIZE, copy_tokenizer, load_tokenizer

PRESETS: Final[Mapping[str, LlamaShape]] = MappingProxyType(
    {
        "tiny": LlamaShape(hidden=256, layers=4, heads=4, kv_heads=2, intermediate=512),
        "bench-76m": LlamaShape(hidden=768, layers=12, heads=12, kv_heads=4, intermediate=1952, max_positions=8192),
    }
)
DTYPES: Final = MappingProxyType({"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32})
# q and k of unit variance give scores q.k / sqrt(head_size) of spread 1: attention is then nearly uniform and
# a single lost token hardly shows. A gain of 2 on each gives spread 4, where a few positions dominate.
_ATTENTION_GAIN: Final = 2.0
# Adapters add this times the spread of the layer's own output: enough to turn most greedy choices.
_LORA_GAIN: Final = 1.0


def make_random_llama(
    path: Path,
    *,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    seed: int,
    vocab: int = VOCAB_SIZE,
    head_size: int = 64,
    intermediate: int | None = None,
    max_positions: int = MAX_POSITIONS,
    dtype: str = "bfloat16",
) -> Path:
    """Write a Llama with random weights and the demonstration model's tokenizer into the folder `path`.

    `intermediate` is 2.5 times `hidden` unless given. Entries of `vocab` beyond the tokenizer's are padding:
    their output weights are zero. Returns `path`. Raises ValueError if the tokenizer has more entries.
    """
    shape = LlamaShape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        intermediate=intermediate if intermediate is not None else hidden * 5 // 2,
        head_size=head_size,
        vocab=vocab,
        max_positions=max_positions,
        dtype=dtype,
    )
    return write_random_llama(path, shape, seed=seed)


def make_preset(path: Path, name: str, *, seed: int = 0, dtype: str | None = None) -> Path:
    """Write the random Llama called `name` in `PRESETS` into the folder `path`, in `dtype` if given."""
    shape = PRESETS[name]
    return write_random_llama(path, replace(shape, dtype=dtype) if dtype else shape, seed=seed)


def write_random_llama(path: Path, shape: LlamaShape, *, seed: int) -> Path:
    """Write a random Llama of `shape` into the folder `path`; see `make_random_llama`."""
    num_tokens = load_tokenizer().get_vocab_size()
    if shape.vocab < num_tokens:
        raise ValueError(f"vocab is {shape.vocab}, but the tokenizer has {num_tokens} entries")
    copy_tokenizer(path, max_positions=shape.max_positions)
    write_config(path, shape, {})
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(_random_weights(shape, num_tokens, generator))
    _save(tensors, path / "model.safetensors")
    return path


def make_random_lora(path: Path, base: Path, rank: int, seed: int) -> Path:
    """Write a LoRA adapter (PEFT layout, q_proj and v_proj) for the model in `base` into the folder `path`.

    Its weights are large enough that greedy output with and without it differ. Returns `path`.
    """
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    hidden, head_size = int(config["hidden_size"]), int(config["head_dim"])
    out_sizes = {
        "q_proj": head_size * int(config["num_attention_heads"]),
        "v_proj": head_size * int(config["num_key_value_heads"]),
    }
    dtype = DTYPES[config["dtype"]]
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(int(config["num_hidden_layers"])):
        for name, out_size in out_sizes.items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            # x of unit variance: A x is unit (rank,), B (A x) has spread _LORA_GAIN (out_size,)
            down = torch.randn(rank, hidden, generator=generator) / math.sqrt(hidden)
            up = torch.randn(out_size, rank, generator=generator) * _LORA_GAIN / math.sqrt(rank)
            tensors[f"{key}.lora_A.weight"] = down.to(dtype)
            tensors[f"{key}.lora_B.weight"] = up.to(dtype)
    path.mkdir(parents=True, exist_ok=True)
    _save(tensors, path / "adapter_model.safetensors")
    _write_adapter_config(path, base, rank, sorted(out_sizes))
    return path


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, str(file), metadata={"format": "pt"})
    file.chmod(0o644)  # save_file leaves it readable by its owner only


def _write_adapter_config(path: Path, base: Path, rank: int, modules: Sequence[str]) -> None:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": list(modules),
    }
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _random_weights(
    shape: LlamaShape, num_tokens: int, generator: torch.Generator
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight by name, always in the same order, so that a seed fixes them all."""
    dtype = DTYPES[shape.dtype]

    def matrix(out_size: int, in_size: int, gain: float = 1.0) -> torch.Tensor:
        # Spread gain / sqrt(in_size): an input of unit variance gives an output of spread `gain`.
        return (torch.randn(out_size, in_size, generator=generator) * (gain / math.sqrt(in_size))).to(dtype)

    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    yield "model.embed_tokens.weight", torch.randn(shape.vocab, shape.hidden, generator=generator).to(dtype)
    for layer in range(shape.layers):
        key = f"model.layers.{layer}"
        yield f"{key}.input_layernorm.weight", torch.ones(shape.hidden, dtype=dtype)
        yield f"{key}.self_attn.q_proj.weight", matrix(queries, shape.hidden, _ATTENTION_GAIN)
        yield f"{key}.self_attn.k_proj.weight", matrix(keys, shape.hidden, _ATTENTION_GAIN)
        yield f"{key}.self_attn.v_proj.weight", matrix(keys, shape.hidden)
        yield f"{key}.self_attn.o_proj.weight", matrix(shape.hidden, queries)
        yield f"{key}.post_attention_layernorm.weight", torch.ones(shape.hidden, dtype=dtype)
        yield f"{key}.mlp.gate_proj.weight", matrix(shape.intermediate, shape.hidden)
        yield f"{key}.mlp.up_proj.weight", matrix(shape.intermediate, shape.hidden)
        yield f"{key}.mlp.down_proj.weight", matrix(shape.hidden, shape.intermediate)
    yield "model.norm.weight", torch.ones(shape.hidden, dtype=dtype)
    # Not tied to the embedding: a random model with tied weights only repeats its last token.
    output = matrix(shape.vocab, shape.hidden)
    output[num_tokens:] = 0
    yield "lm_head.weight", output


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a preset model, and an adapter for it if asked: see --help."""
    parser = argparse.ArgumentParser(description="Write a small Llama with random weights.")
    parser.add_argument("path", type=Path, help="folder to write")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="bench-76m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: bfloat16")
    parser.add_argument("--lora", type=Path, metavar="DIR", help="also write a LoRA adapter for it")
    parser.add_argument("--lora-rank", type=int, default=8)
    options = parser.parse_args(arguments)
    make_preset(options.path, options.preset, seed=options.seed, dtype=options.dtype)
    if options.lora is not None:
        make_random_lora(options.lora, options.path, options.lora_rank, options.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
