"""Rules between keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.config.checks import check_across, check_typed
from core.config.models import BatonConfig, PoolConfig, PoolsConfig
from core.config.yaml_text import read_yaml

FACTS = {
    "max_position_embeddings": 4096,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_size": 256,
}


def broken_rules(yaml: str, base: Path) -> list[tuple[str, str]]:
    """Apply the rules to a YAML text; give path and message of each breach."""
    tree, problems = read_yaml(yaml, file="a.yaml")
    assert problems == []
    return [(problem.path, problem.message) for problem in check_across(tree, base=base)]


@pytest.mark.parametrize(
    ("yaml", "path", "message"),
    [
        (
            "slo: {classes: {a: {ttft_ms: 1, tpot_ms: 1}}, default: b}",
            "slo.default",
            "is not one of slo.classes",
        ),
        ("slo: {default: b}", "slo.default", "is not one of slo.classes"),
        (
            "model: {lora: [{name: a, path: x}, {name: b, path: x}, {name: a, path: y}]}",
            "model.lora[2].name",
            "is the name of model.lora[0] too: names must be unique",
        ),
        (
            "model: {name: a, lora: [{name: a, path: x}]}",
            "model.lora[0].name",
            "is the name of the base model: names must be unique",
        ),
        (
            "scaling: {decode: {min: 3, max: 2}}",
            "scaling.decode.max",
            "must be at least scaling.decode.min, which is 3",
        ),
        (
            "healing: {first_delay_s: 5, max_delay_s: 2}",
            "healing.max_delay_s",
            "must be at least healing.first_delay_s, which is 5",
        ),
        ("model: {engine_args: {port: 1}}", "model.engine_args.port", "Baton sets this flag itself"),
        ("model: {engine_args: {max_model_len: 1}}", "model.engine_args.max_model_len", "Baton sets this flag itself"),
        ("model: {engine_args: {--foo: 1}}", "model.engine_args.--foo", "is written without the leading dashes"),
        (
            "pools: {decode: {max_num_seqs: 4096}}",
            "pools.decode.max_num_batched_tokens",
            "must be at least pools.decode.max_num_seqs, which is 4096",
        ),
        (
            "pools: {prefill: {tensor_parallel: 2}}",
            "pools.decode.tensor_parallel",
            "must equal pools.prefill.tensor_parallel, which is 2: other workers cannot exchange KV",
        ),
        (
            "pools: {decode: {pipeline_parallel: 2}}",
            "pools.decode.pipeline_parallel",
            "must equal pools.prefill.pipeline_parallel, which is 1: other workers cannot exchange KV",
        ),
        (
            "pools: {prefill: {tensor_parallel: 4, gpus: 2}, decode: {tensor_parallel: 4}}",
            "pools.prefill.gpus",
            "must be at least tensor_parallel x pipeline_parallel, which is 4, or 0",
        ),
        ("router: {policy: least-predicted-wrok}", "router.policy", "is no policy"),
        (
            "plan: {workload: chat, trace: a.csv}",
            "plan.workload",
            "stands beside plan.trace, which says what traffic to expect: keep one of them",
        ),
    ],
)
def test_keys_that_disagree_are_reported(tmp_path: Path, yaml: str, path: str, message: str) -> None:
    assert broken_rules(yaml, tmp_path) == [(path, message)]


@pytest.mark.parametrize(
    "yaml",
    [
        "{}",
        "slo: {classes: {a: {ttft_ms: 1, tpot_ms: 1}}, default: a}",
        "slo: {default: 3}",
        "slo: {classes: 3, default: a}",
        "model: {lora: [{name: a, path: x}, {name: 3}, 5]}",
        "pools: {prefill: {tensor_parallel: 2}, decode: {tensor_parallel: 2}}",
        "pools: {prefill: {tensor_parallel: wrong}}",
        "pools: {prefill: {tensor_parallel: 2, gpus: 0}, decode: {tensor_parallel: 2, gpus: 0}}",
        "pools: 3",
        "pools: auto",
        "pools: {prefill: {replicas: 0, tensor_parallel: 8, gpus: 1, max_num_seqs: 4096}}",
        "plan: {workload: 3, trace: a.csv}",
        "model: {engine_args: {tool-call-parser: hermes}}",
        "router: {policy: 3}",
    ],
)
def test_rules_keep_silent_about_what_agrees_or_is_wrong_already(tmp_path: Path, yaml: str) -> None:
    assert broken_rules(yaml, tmp_path) == []


def test_a_made_configuration_is_held_against_the_same_rules(tmp_path: Path) -> None:
    unlike = PoolsConfig(prefill=PoolConfig(tensor_parallel=2), decode=PoolConfig(replicas=0))
    problems = check_typed(BatonConfig(pools=unlike), source="the plan", base=tmp_path)
    assert [(problem.path, problem.source) for problem in problems] == [("pools.decode.replicas", "the plan")]
    assert check_typed(BatonConfig(pools="auto"), source="the plan", base=tmp_path) == []


def a_model(tmp_path: Path, **changes: object) -> None:
    """Write a folder `m` whose config.json states FACTS, with changes."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({**FACTS, **changes}))


def test_a_length_beyond_the_models_own_is_refused(tmp_path: Path) -> None:
    a_model(tmp_path)
    yaml = "model: {path: m, max_model_len: 8192}"
    assert broken_rules(yaml, tmp_path) == [
        ("model.max_model_len", "is more than the model's own limit of 4096 tokens")
    ]


# One token of FACTS takes 2 x 2 x 2 x 64 = 512 values; 4096 tokens 4 MiB in 16 bits, 8 MiB in 32 bits.
TOO_SMALL = "is too small for one request of 4096 tokens, which needs 8"


@pytest.mark.parametrize(
    ("dtype", "kv_cache_mb", "is_refused"),
    [("float32", 7, True), ("float32", 8, False), ("auto", 7, False), ("bfloat16", 4, False), ("float16", 3, True)],
)
def test_a_cache_must_hold_one_longest_request(tmp_path: Path, dtype: str, kv_cache_mb: int, is_refused: bool) -> None:
    a_model(tmp_path)
    yaml = f"model: {{path: m, dtype: {dtype}}}\npools: {{prefill: {{kv_cache_mb: {kv_cache_mb}}}}}"
    assert bool(broken_rules(yaml, tmp_path)) is is_refused


def test_the_remedy_for_a_small_cache_is_a_number(tmp_path: Path) -> None:
    a_model(tmp_path)
    tree, _ = read_yaml("model: {path: m, dtype: float32}\npools: {decode: {kv_cache_mb: 7}}", file="a.yaml")
    [problem] = check_across(tree, base=tmp_path)
    assert (problem.path, problem.message) == ("pools.decode.kv_cache_mb", TOO_SMALL)
    assert problem.suggestion == "write at least 8, or a smaller model.max_model_len"


def test_a_shorter_context_makes_a_small_cache_do(tmp_path: Path) -> None:
    a_model(tmp_path)
    yaml = "model: {path: m, dtype: float32, max_model_len: 2048}\npools: {decode: {kv_cache_mb: 7}}"
    assert broken_rules(yaml, tmp_path) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_lora_rank": 512},
        {"layer_types": ["full_attention", "linear_attention"]},
        {"num_hidden_layers": None},
        {"num_hidden_layers": "2"},
    ],
)
def test_unusual_models_are_left_to_the_engine(tmp_path: Path, changes: dict[str, object]) -> None:
    a_model(tmp_path, **changes)
    assert broken_rules("model: {path: m}\npools: {decode: {kv_cache_mb: 8}}", tmp_path) == []


def test_another_cache_type_is_left_to_the_engine(tmp_path: Path) -> None:
    a_model(tmp_path)
    yaml = "model: {path: m, dtype: float32, engine_args: {kv-cache-dtype: fp8}}\npools: {decode: {kv_cache_mb: 7}}"
    assert broken_rules(yaml, tmp_path) == []
