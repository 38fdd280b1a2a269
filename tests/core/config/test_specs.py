"""What a worker process is told, from the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.config.models import (
    BatonConfig,
    KVConfig,
    LoraConfig,
    ModelConfig,
    PlanConfig,
    PoolConfig,
    PoolsConfig,
    SLOClass,
    SLOConfig,
)
from core.config.specs import (
    default_slo_class,
    engine_flags,
    engine_spec,
    gpus_per_worker,
    kv_spec,
    planned_worker,
    pool_config,
    served_model_name,
    with_absolute_profile,
)
from core.errors import ConfigError
from core.worker_spec import EngineSpec, KVSpec


def test_every_key_reaches_the_engine(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "adapter").mkdir()
    config = BatonConfig(
        model=ModelConfig(
            path="m",
            name="served",
            dtype="bfloat16",
            max_model_len=128,
            block_size=64,
            lora=(LoraConfig(name="a", path="adapter"), LoraConfig(name="b", path="org/b")),
            engine_args={"tool-call-parser": "hermes", "enforce-eager": False, "enable_prefix_caching": False},
        ),
        pools=PoolsConfig(
            decode=PoolConfig(
                tensor_parallel=2,
                pipeline_parallel=2,
                max_num_seqs=3,
                max_num_batched_tokens=64,
                shared_step_tokens=48,
                kv_cache_mb=8,
            )
        ),
    )
    assert engine_spec(config, "decode", has_gpu=True, base=tmp_path) == EngineSpec(
        kind="vllm",
        model_path=str(tmp_path / "m"),
        served_model_name="served",
        dtype="bfloat16",
        max_model_len=128,
        block_size=64,
        max_num_seqs=3,
        max_num_batched_tokens=64,
        shared_step_tokens=48,
        kv_cache_bytes=2 << 20,  # of one of four ranks
        tensor_parallel=2,
        pipeline_parallel=2,
        enforce_eager=False,
        enable_prefix_caching=False,
        lora_adapters=(("a", str(tmp_path / "adapter")), ("b", "org/b")),
        extra_args=("--tool-call-parser", "hermes"),
    )


@pytest.mark.parametrize(("has_gpu", "kv_cache_bytes"), [(False, 512 << 20), (True, None)])
def test_without_a_size_the_cache_follows_the_machine(has_gpu: bool, kv_cache_bytes: int | None) -> None:
    assert engine_spec(BatonConfig(), "prefill", has_gpu=has_gpu).kv_cache_bytes == kv_cache_bytes


@pytest.mark.parametrize(
    ("pool", "max_model_len", "given", "expected"),
    [
        ("prefill", 4096, None, 192),
        ("prefill", 4096, 100, 100),
        ("prefill", 128, None, 128),  # vLLM refuses more than the model's length
        ("prefill", None, None, None),  # a model of the hub, whose length is not known here
        ("prefill", None, 100, 100),
        ("decode", 4096, None, None),
        ("decode", 4096, 64, 64),
    ],
)
def test_prefill_workers_leave_a_quarter_of_a_step_to_other_prompts(
    pool: str, max_model_len: int | None, given: int | None, expected: int | None
) -> None:
    sizes = PoolConfig(max_num_batched_tokens=256, shared_step_tokens=given)
    model = ModelConfig(path="org/model", max_model_len=max_model_len)
    config = BatonConfig(model=model, pools=PoolsConfig(prefill=sizes, decode=sizes))
    assert engine_spec(config, pool).shared_step_tokens == expected


def test_the_length_is_the_models_own_unless_given() -> None:
    assert engine_spec(BatonConfig(), "prefill").max_model_len is None


def test_pools_are_known_by_role() -> None:
    config = BatonConfig(pools=PoolsConfig(prefill=PoolConfig(replicas=2)))
    assert [pool_config(config, name).replicas for name in ("prefill", "decode")] == [2, 1]
    with pytest.raises(ValueError, match="router"):
        engine_spec(config, "router")


def test_pools_to_be_planned_have_no_workers_yet() -> None:
    config = BatonConfig(pools="auto", plan=PlanConfig(cpus=2, kv_cache_mb=64))
    for name in ("prefill", "decode"):
        with pytest.raises(ConfigError, match="pools: auto names no pools before they are planned"):
            pool_config(config, name)
    assert planned_worker(config) == PoolConfig(replicas=1, cpus=2, kv_cache_mb=64)


def test_a_profile_is_found_from_every_process(tmp_path: Path) -> None:
    def located(profile: str | None) -> str | None:
        return with_absolute_profile(BatonConfig(plan=PlanConfig(profile=profile)), tmp_path).plan.profile

    assert located("a/p.json") == str(tmp_path / "a" / "p.json")
    assert located("/p.json") == "/p.json"
    assert located(None) is None


@pytest.mark.parametrize(
    ("path", "name", "served"),
    [
        ("org/Model-1", None, "Model-1"),
        ("/models/Model-1/", None, "Model-1"),
        ("org/Model-1", "x", "x"),
        ("/", None, "/"),
    ],
)
def test_the_served_name_is_given_or_the_last_part_of_the_path(path: str, name: str | None, served: str) -> None:
    assert served_model_name(BatonConfig(model=ModelConfig(path=path, name=name))) == served


def test_the_default_class_is_given_or_the_first() -> None:
    classes = {"b": SLOClass(ttft_ms=1, tpot_ms=1), "a": SLOClass(ttft_ms=1, tpot_ms=1)}
    assert default_slo_class(BatonConfig(slo=SLOConfig(classes=classes))) == "b"
    assert default_slo_class(BatonConfig(slo=SLOConfig(classes=classes, default="a"))) == "a"


@pytest.mark.parametrize(
    ("pool", "has_gpu", "gpus"),
    [
        (PoolConfig(tensor_parallel=2, pipeline_parallel=3), True, 6),
        (PoolConfig(tensor_parallel=2), False, 0),
        (PoolConfig(gpus=3), False, 3),
        (PoolConfig(gpus=0), True, 0),
    ],
)
def test_gpus_follow_from_parallelism_unless_given(pool: PoolConfig, has_gpu: bool, gpus: int) -> None:
    assert gpus_per_worker(pool, has_gpu=has_gpu) == gpus


def test_hand_over_settings_in_bytes() -> None:
    config = BatonConfig(kv=KVConfig(lease_s=5, staging_mb=16, verify_share=0.5))
    assert kv_spec(config) == KVSpec(transport="auto", lease_s=5.0, staging_bytes=16 << 20, verify_share=0.5)


def test_a_named_transport_reaches_the_workers() -> None:
    assert kv_spec(BatonConfig(kv=KVConfig(transport="tcp"))).transport == "tcp"


def test_engine_args_become_flags() -> None:
    arguments: dict[str, str | int | float | bool] = {"a_b": 1, "c": True, "d-e": False, "f": "x y", "g": 0.5, "h": ""}
    assert engine_flags(arguments) == ("--a-b", "1", "--c", "--no-d-e", "--f", "x y", "--g", "0.5", "--h", "")


@pytest.mark.parametrize(
    ("arguments", "eager"),
    [
        ({}, True),
        ({"enforce-eager": False}, False),
        ({"no_enforce_eager": True}, False),
        ({"enforce_eager": True}, True),
    ],
)
def test_eager_mode_is_on_without_gpu_unless_switched_off(
    arguments: dict[str, str | int | float | bool], eager: bool
) -> None:
    spec = engine_spec(BatonConfig(model=ModelConfig(engine_args=arguments)), "decode")
    assert (spec.enforce_eager, spec.extra_args) == (eager, ())


def test_kernels_are_compiled_on_a_gpu_unless_switched_off() -> None:
    assert not engine_spec(BatonConfig(), "decode", has_gpu=True).enforce_eager
    eager = BatonConfig(model=ModelConfig(engine_args={"enforce-eager": True}))
    assert engine_spec(eager, "decode", has_gpu=True).enforce_eager
