"""The environment of a worker process follows its spec, and the user's word stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.types import Role
from core.worker_spec import EngineSpec, WorkerSpec
from engine import vllm_env
from engine.vllm_env import num_threads, worker_environment


@pytest.fixture
def spec(tmp_path: Path) -> WorkerSpec:
    engine = EngineSpec(kind="vllm", model_path=str(tmp_path), served_model_name="m")
    return WorkerSpec("w", Role.DECODE, 1, "127.0.0.1", str(tmp_path), engine)


@pytest.mark.parametrize(("cpus", "threads"), [((), 1), ((3,), 1), ((0, 1, 5), 3)])
def test_one_thread_for_each_pinned_core(spec: WorkerSpec, cpus: tuple[int, ...], threads: int) -> None:
    pinned = replace(spec, cpus=cpus)
    assert num_threads(pinned) == threads
    assert worker_environment(pinned, {"OMP_NUM_THREADS": "64"})["OMP_NUM_THREADS"] == str(threads)


def test_only_local_models_are_offline(spec: WorkerSpec) -> None:
    assert worker_environment(spec, {})["HF_HUB_OFFLINE"] == "1"
    hub = replace(spec, engine=replace(spec.engine, model_path="org/model"))
    assert "HF_HUB_OFFLINE" not in worker_environment(hub, {})


def test_the_users_variables_stand(spec: WorkerSpec) -> None:
    base = {"VLLM_LOGGING_LEVEL": "DEBUG", "HF_HUB_OFFLINE": "0", "TORCH_COMPILE_DISABLE": "0"}
    assert not base.keys() & worker_environment(spec, base).keys()


def test_cpu_workers_of_one_rank_keep_the_executor_inside(spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_env, "is_cpu_build", lambda: True)
    assert worker_environment(spec, {})["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    two_ranks = replace(spec, engine=replace(spec.engine, tensor_parallel=2))
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in worker_environment(two_ranks, {})
    monkeypatch.setattr(vllm_env, "is_cpu_build", lambda: False)
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in worker_environment(spec, {})


def test_the_environment_is_complete_after_one_pass(spec: WorkerSpec) -> None:
    first = worker_environment(spec, {"LD_PRELOAD": "/x/liby.so"})
    again = worker_environment(spec, {"LD_PRELOAD": "/x/liby.so", **first})
    assert "LD_PRELOAD" not in again
    assert first.get("LD_PRELOAD", "/x/liby.so").endswith("/x/liby.so")
