"""A spec becomes the flags a user of `vllm serve` would write."""

from __future__ import annotations

import json
from dataclasses import replace

from core.types import Role
from core.worker_spec import EngineSpec, KVSpec, WorkerSpec
from engine.vllm_args import serve_flags

PLAIN = EngineSpec(kind="vllm", model_path="/models/m", served_model_name="m")


def flags(engine: EngineSpec, kv: KVSpec | None = None) -> list[str]:
    spec = WorkerSpec("w", Role.DECODE, 1, "127.0.0.1", "/run", engine, kv=kv or KVSpec())
    return serve_flags(spec, {"worker_id": "w", "faults": {"drop": "1"}})


def value(of: list[str], name: str) -> str:
    return of[of.index(name) + 1]


def test_every_worker_may_send_and_receive() -> None:
    made = json.loads(value(flags(PLAIN), "--kv-transfer-config"))
    assert made == {
        "kv_connector": "BatonConnector",
        "kv_connector_module_path": "kv_transfer.connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"worker_id": "w", "faults": {"drop": "1"}},
    }


def test_a_worker_without_transport_has_no_connector() -> None:
    assert "--kv-transfer-config" not in flags(PLAIN, KVSpec(transport="none"))


def test_what_is_not_given_is_left_to_the_engine() -> None:
    made = flags(PLAIN)
    optional = {"--max-model-len", "--long-prefill-token-threshold", "--kv-cache-memory-bytes", "--enable-lora"}
    assert not optional & set(made)


def test_sizes_adapters_and_extra_flags() -> None:
    engine = EngineSpec(
        kind="vllm",
        model_path="/models/m",
        served_model_name="m",
        max_model_len=2048,
        shared_step_tokens=192,
        kv_cache_bytes=64 << 20,
        tensor_parallel=2,
        enforce_eager=False,
        enable_prefix_caching=False,
        lora_adapters=(("a", "/a"), ("b", "/b")),
        extra_args=("--max-model-len", "1024"),
    )
    made = flags(engine)
    assert value(made, "--distributed-executor-backend") == "mp"
    assert value(made, "--long-prefill-token-threshold") == "192"
    assert value(made, "--kv-cache-memory-bytes") == str(64 << 20)
    assert value(made, "--max-loras") == "2"
    at = made.index("--lora-modules")
    assert made[at + 1 : at + 3] == ["a=/a", "b=/b"]
    assert made[-2:] == ["--max-model-len", "1024"]
    assert "--enforce-eager" not in made
    assert "--no-enable-prefix-caching" in made


def test_workers_resume_unless_another_extension_is_asked_for() -> None:
    assert value(flags(PLAIN), "--worker-extension-cls") == "engine.vllm_resume_worker.ResumingWorker"
    made = flags(replace(PLAIN, extra_args=("--worker-extension-cls=a.B",)))
    assert [flag for flag in made if flag.startswith("--worker-extension-cls")] == ["--worker-extension-cls=a.B"]


def test_the_scheduler_tells_its_steps_unless_another_is_asked_for() -> None:
    assert value(flags(PLAIN), "--scheduler-cls") == "engine.vllm_scheduler.telling_scheduler"
    for extra in (("--scheduler-cls", "a.B"), ("--scheduler-cls=a.B",)):
        made = flags(replace(PLAIN, extra_args=extra))
        assert [flag for flag in made if flag.startswith("--scheduler-cls")] == [extra[0]]
