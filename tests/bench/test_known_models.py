"""Known models: their parameters are those they are published with, and names find them."""

from __future__ import annotations

import pytest

from bench.known_models import known_model


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8.0),
        ("meta-llama/Llama-3.1-70B", 70.6),
        ("Qwen/Qwen3-8B", 8.2),
        ("Qwen/Qwen3-32B", 32.8),
        ("Qwen/Qwen3-30B-A3B", 30.5),
        ("Qwen/Qwen3-235B-A22B-FP8", 235.0),
        ("Qwen/Qwen3.5-397B-A17B", 397.0),
        ("deepseek-ai/DeepSeek-R1", 671.0),
        ("moonshotai/Kimi-K2.5", 1030.0),
        ("zai-org/GLM-5", 744.0),
        ("MiniMaxAI/MiniMax-M2.5", 229.0),
        ("openai/gpt-oss-120b", 116.8),
        ("openai/gpt-oss-20b", 20.9),
    ],
)
def test_parameters_are_those_published(name: str, billions: float) -> None:
    shape = known_model(name)
    assert shape is not None
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.03)


def test_renamed_twins_are_one() -> None:
    assert known_model("deepseek-ai/DeepSeek-R1") == known_model("deepseek-ai/DeepSeek-V3")


def test_an_unknown_model_is_none() -> None:
    assert known_model("someone/some-model") is None
