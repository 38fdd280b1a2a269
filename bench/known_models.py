"""The sizes of published models that measured servings name, from their config.json files; facts, nothing else.

Owns the table. Must not know what was measured. A serving of a model that is not here needs its config.json.
"""

from __future__ import annotations

from dataclasses import replace

from core.latency.model_shape import Experts, Latent, ModelShape

_DEEPSEEK_LATENT = Latent(query_rank=1536, kv_rank=512, rope_dim=64, nope_dim=128, value_dim=128)
_LLAMA_8B = ModelShape("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256)
_LLAMA_70B = ModelShape("Llama-3.1-70B", 80, 8192, 64, 8, 128, 28672, 128256)
_QWEN_30B = ModelShape("Qwen3-30B-A3B", 48, 2048, 32, 4, 128, 0, 151936, experts=Experts(128, 8, 768, 0, 48))
_QWEN_235B = ModelShape("Qwen3-235B-A22B", 94, 4096, 64, 4, 128, 0, 151936, experts=Experts(128, 8, 1536, 0, 94))
_DEEPSEEK = ModelShape(
    "DeepSeek-V3",
    61,
    7168,
    128,
    128,
    128,
    18432,
    129280,
    experts=Experts(256, 8, 2048, 2048, 58),
    latent=_DEEPSEEK_LATENT,
)
_KIMI = replace(
    _DEEPSEEK,
    name="Kimi-K2",
    heads=64,
    kv_heads=64,
    vocab=163840,
    experts=Experts(384, 8, 2048, 2048, 60),
    attention_weight_bytes=2.0,
)
# GLM-5 attends to the 2,048 tokens that an indexer picks; the indexer reads all. Counted as full attention.
_GLM_5 = ModelShape(
    "GLM-5",
    78,
    6144,
    64,
    64,
    128,
    12288,
    154880,
    experts=Experts(256, 8, 2048, 2048, 75),
    latent=Latent(2048, 512, 64, 192, 256),
)
_MINIMAX = ModelShape("MiniMax-M2", 62, 3072, 48, 8, 128, 0, 200064, experts=Experts(256, 8, 1536, 0, 62))
_GPT_OSS_120B = ModelShape(
    "gpt-oss-120b",
    36,
    2880,
    64,
    8,
    64,
    0,
    201088,
    experts=Experts(128, 4, 2880, 0, 36),
    window=128,
    windowed_layers=18,
    attention_weight_bytes=2.0,
)
_GPT_OSS_20B = replace(
    _GPT_OSS_120B, name="gpt-oss-20b", layers=24, experts=Experts(32, 4, 2880, 0, 24), windowed_layers=12
)
# Three of four layers of Qwen3.5 attend linearly: a state as large as the KV of about 128 tokens.
_QWEN35_397B = ModelShape(
    "Qwen3.5-397B-A17B",
    60,
    4096,
    32,
    2,
    256,
    0,
    248320,
    experts=Experts(512, 10, 1024, 1024, 60),
    window=128,
    windowed_layers=45,
)
# What a model's published name contains -> its sizes; the first match counts, so the longer name stands first.
_BY_NAME = (
    ("Llama-3.1-8B", _LLAMA_8B),
    ("Llama-3.1-70B", _LLAMA_70B),
    ("Llama-3.3-70B", _LLAMA_70B),
    ("Qwen3-32B", ModelShape("Qwen3-32B", 64, 5120, 64, 8, 128, 25600, 151936)),
    ("Qwen3-8B", ModelShape("Qwen3-8B", 36, 4096, 32, 8, 128, 12288, 151936)),
    ("Qwen3-30B-A3B", _QWEN_30B),
    ("Qwen3-235B-A22B", _QWEN_235B),
    ("Qwen3.5-397B", _QWEN35_397B),
    ("DeepSeek-V3", _DEEPSEEK),
    ("DeepSeek-R1", _DEEPSEEK),
    ("Kimi-K2", _KIMI),
    ("GLM-5", _GLM_5),
    ("MiniMax-M2", _MINIMAX),
    ("gpt-oss-120b", _GPT_OSS_120B),
    ("gpt-oss-20b", _GPT_OSS_20B),
)


def known_model(name: str) -> ModelShape | None:
    """Find the sizes of a model by its published name; None when it is not in the table."""
    return next((shape for part, shape in _BY_NAME if part.lower() in name.lower()), None)
