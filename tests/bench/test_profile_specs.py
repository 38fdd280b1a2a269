"""The engines to be measured are those that `baton up` starts, on the cores it gives them, if the machine can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.profile_specs import Machine, device_name, engines_to_measure, visible_gpus
from cluster.placement import WorkerPlacement, assign_cores
from core.config.load import load_config
from core.config.models import BatonConfig
from core.config.specs import engine_spec, pool_config
from core.errors import ConfigError
from core.types import Role
from engine.step_trace import flags

GIB = 1 << 30
MACHINE = Machine(cores=(0, 1, 2, 3), cpu_name="AMD EPYC", gpu_names=(), free_bytes=16 * GIB)
GPUS = replace(MACHINE, gpu_names=("NVIDIA H200",) * 4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


def configured(model: Path | str, *overrides: str) -> BatonConfig:
    return load_config(None, overrides=[f"model.path={model}", "kv.lease_s=7", *overrides], environ={})


@pytest.mark.parametrize("cpus", [(1, 1), (2, 1), (1, 3), (3, 3)])
@pytest.mark.parametrize("replicas", [(1, 1), (2, 1), (1, 2)])
def test_engines_get_the_cores_that_the_first_workers_of_their_pools_get(
    model: Path, tmp_path: Path, cpus: tuple[int, int], replicas: tuple[int, int]
) -> None:
    words = [f"pools.{role}.cpus={count}" for role, count in zip(Role, cpus, strict=True)]
    words += [f"pools.{role}.replicas={count}" for role, count in zip(Role, replicas, strict=True)]
    config = configured(model, *words)
    workers = [
        WorkerPlacement(f"{role}-{index}", role, "node", "127.0.0.1", pool_config(config, role).cpus, 0, {})
        for role in Role
        for index in range(pool_config(config, role).replicas)
    ]
    as_up = assign_cores(workers, {"node": MACHINE.cores})
    (group,) = engines_to_measure(config, list(Role), MACHINE, tmp_path, tmp_path)
    for engine in group:
        assert len(engine.spec.cpus) == len(as_up.get(engine.spec.worker_id, ()))
    held = [core for engine in group for core in engine.spec.cpus]
    assert len(held) == len(set(held))


def test_engines_are_those_of_up_and_write_their_steps(model: Path, tmp_path: Path) -> None:
    config = configured(model, "pools.decode.max_num_seqs=7")
    (group,) = engines_to_measure(config, list(Role), MACHINE, tmp_path, tmp_path)
    for engine, role in zip(group, Role, strict=True):
        traced = flags(tmp_path / f"{role}-0.steps")
        assert engine.spec.engine.extra_args[-len(traced) :] == traced
        own = replace(engine.spec.engine, extra_args=engine.spec.engine.extra_args[: -len(traced)])
        assert own == engine_spec(config, role.value, base=tmp_path)
        assert engine.spec.kv.lease_s == 7


def test_a_pool_without_workers_is_not_measured(model: Path, tmp_path: Path) -> None:
    config = configured(model, "pools.prefill.replicas=0")
    (group,) = engines_to_measure(config, list(Role), MACHINE, tmp_path, tmp_path)
    assert [engine.spec.role for engine in group] == [Role.DECODE]
    with pytest.raises(ConfigError, match="no workers"):
        engines_to_measure(config, [Role.PREFILL], MACHINE, tmp_path, tmp_path)


def test_pools_to_be_planned_are_measured_as_the_planners_worker(model: Path, tmp_path: Path) -> None:
    config = configured(model, "pools=auto", "plan.kv_cache_mb=64")
    (group,) = engines_to_measure(config, list(Role), MACHINE, tmp_path, tmp_path)
    assert [engine.spec.engine.kv_cache_bytes for engine in group] == [64 << 20] * 2


def test_engines_that_do_not_fit_together_are_measured_one_after_the_other(model: Path, tmp_path: Path) -> None:
    machine = replace(MACHINE, free_bytes=2 * GIB)
    groups = engines_to_measure(configured(model), list(Role), machine, tmp_path, tmp_path)
    assert [[engine.spec.role for engine in group] for group in groups] == [[Role.PREFILL], [Role.DECODE]]


def test_too_little_memory_is_refused_with_what_helps(model: Path, tmp_path: Path) -> None:
    machine = replace(MACHINE, free_bytes=1 * GIB)
    with pytest.raises(ConfigError, match=r"pools\.prefill: .*1024 MiB are free.*kv_cache_mb"):
        engines_to_measure(configured(model), list(Role), machine, tmp_path, tmp_path)


def test_engines_on_gpus_get_gpus_of_their_own(model: Path, tmp_path: Path) -> None:
    config = configured(model, "pools.prefill.tensor_parallel=2", "pools.decode.tensor_parallel=2")
    (group,) = engines_to_measure(config, list(Role), GPUS, tmp_path, tmp_path)
    assert [engine.gpus for engine in group] == [(0, 1), (2, 3)]
    assert [engine.spec.cpus for engine in group] == [(), ()]
    assert visible_gpus(group[1].gpus) == {"CUDA_VISIBLE_DEVICES": "2,3"}


def test_engines_share_gpus_in_turn_when_there_are_too_few(model: Path, tmp_path: Path) -> None:
    config = configured(model, "pools.prefill.tensor_parallel=4", "pools.decode.tensor_parallel=4")
    groups = engines_to_measure(config, list(Role), GPUS, tmp_path, tmp_path)
    assert [[engine.gpus for engine in group] for group in groups] == [[(0, 1, 2, 3)], [(0, 1, 2, 3)]]


def test_more_gpus_than_there_are_is_refused(model: Path, tmp_path: Path) -> None:
    config = configured(model, "pools.prefill.tensor_parallel=8", "pools.decode.tensor_parallel=8")
    with pytest.raises(ConfigError, match=r"takes 8 GPUs and this machine has 4.*tensor_parallel"):
        engines_to_measure(config, list(Role), GPUS, tmp_path, tmp_path)


def test_a_model_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path: there is no folder \./absent"):
        engines_to_measure(configured("./absent"), list(Role), MACHINE, tmp_path, tmp_path)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        engines_to_measure(configured(tmp_path), list(Role), MACHINE, tmp_path, tmp_path)


def test_devices_are_named_for_what_a_worker_has() -> None:
    assert device_name(1, MACHINE) == "cpu-amd-epyc-1-core"
    assert device_name(2, MACHINE) == "cpu-amd-epyc-2-cores"
    assert device_name(2, GPUS) == "nvidia-h200"
