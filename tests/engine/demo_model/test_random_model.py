"""Random models: equal seeds give equal weights, the files fit together, and adapters change the output."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.demo_model.random_model import PRESETS, main, make_preset, make_random_llama, make_random_lora
from engine.demo_model.tokenizer import VOCAB_SIZE


def make_small(path: Path, *, seed: int, vocab: int = VOCAB_SIZE) -> Path:
    return make_random_llama(
        path, hidden=64, layers=2, heads=2, kv_heads=1, head_size=32, vocab=vocab, seed=seed, dtype="float32"
    )


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    """Load it late: that is four seconds of CPU, else for every process that collects this file."""
    return importlib.import_module("transformers")


def greedy(model: Any, prompt: list[int]) -> list[int]:
    with torch.no_grad():
        ids: list[int] = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0].tolist()
    return ids[len(prompt) :]


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    first, again, other = (make_small(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for file in first.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_the_model_loads_and_its_output_depends_on_the_first_token(transformers: ModuleType, tmp_path: Path) -> None:
    folder = make_small(tmp_path, seed=1)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    prompt = transformers.AutoTokenizer.from_pretrained(str(folder))("What news from Rome?")["input_ids"]
    outputs = {tuple(greedy(model, [first, *prompt])) for first in range(10, 18)}
    assert len(outputs) >= 4
    assert greedy(model, prompt) == greedy(model, prompt)


def test_an_adapter_has_the_base_models_sizes_and_moves_the_logits(transformers: ModuleType, tmp_path: Path) -> None:
    base = make_small(tmp_path / "base", seed=1)
    adapter = make_random_lora(tmp_path / "lora", base, 4, 5)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["target_modules"]) == (4, ["q_proj", "v_proj"])
    weights = load_file(str(adapter / "adapter_model.safetensors"))
    base_weights = load_file(str(base / "model.safetensors"))
    assert len(weights) == 2 * 2 * 2
    model = transformers.AutoModelForCausalLM.from_pretrained(str(base)).eval()
    plain = greedy(model, [1, 50, 60, 70])
    for name, parameter in model.named_parameters():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in weights:
            delta = weights[f"{key}.lora_B.weight"] @ weights[f"{key}.lora_A.weight"]
            assert delta.shape == base_weights[name].shape
            parameter.data += delta
    assert greedy(model, [1, 50, 60, 70]) != plain


def test_padding_entries_have_no_output_weight(tmp_path: Path) -> None:
    weights = load_file(str(make_small(tmp_path, seed=1, vocab=VOCAB_SIZE + 64) / "model.safetensors"))
    assert weights["lm_head.weight"].shape == (VOCAB_SIZE + 64, 64)
    assert not weights["lm_head.weight"][VOCAB_SIZE:].any()
    assert weights["lm_head.weight"][:VOCAB_SIZE].any(dim=1).all()


def test_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the tokenizer has 2048 entries"):
        make_small(tmp_path, seed=1, vocab=100)


def test_the_benchmark_model_has_76_million_weights() -> None:
    shape = PRESETS["bench-76m"]
    assert round(shape.num_parameters / 1e6) == 76
    assert (shape.max_positions, shape.dtype) == (8192, "bfloat16")


def test_the_command_line_writes_model_and_adapter(tmp_path: Path) -> None:
    model, adapter = tmp_path / "model", tmp_path / "lora"
    assert main([str(model), "--preset", "tiny", "--dtype", "float32", "--lora", str(adapter)]) == 0
    again = make_preset(tmp_path / "again", "tiny", dtype="float32")
    assert (model / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert (adapter / "adapter_model.safetensors").exists()
