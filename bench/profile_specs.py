"""Which engines a profile starts, and whether this machine can: from the configuration to specs as workers get them.

Owns cores, GPUs and memory of the engines to be measured. Must not start anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.engine_process import trace_file
from core.config.model_files import looks_like_folder, model_location
from core.config.models import BatonConfig, PoolsConfig
from core.config.specs import engine_spec, gpus_per_worker, kv_spec, planned_worker, pool_config
from core.errors import ConfigError
from core.types import Role
from core.worker_spec import WorkerSpec
from engine.step_trace import flags

_PROCESS_BYTES = 1300 << 20  # front and engine core of one worker on CPU without weights and KV: 1.2 GiB measured
_WEIGHT_FILES = (".safetensors", ".bin", ".pt")


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine lets engines use."""

    cores: tuple[int, ...]
    cpu_name: str
    gpu_names: tuple[str, ...]  # none: engines run on the cores
    free_bytes: int  # memory of the host


@dataclass(frozen=True, slots=True)
class EngineToMeasure:
    """One engine, and the GPUs it is to see."""

    spec: WorkerSpec
    gpus: tuple[int, ...]


def this_machine(*, cpu_build: bool) -> Machine:
    """Look at the machine; its GPUs count only for a vLLM that can use them."""
    return Machine(
        cores=tuple(sorted(os.sched_getaffinity(0))),
        cpu_name=_cpu_name(_text_of("/proc/cpuinfo")),
        gpu_names=() if cpu_build else _gpu_names(),
        free_bytes=_free_bytes(_text_of("/proc/meminfo")),
    )


def engines_to_measure(
    config: BatonConfig, roles: Sequence[Role], machine: Machine, run_dir: Path, base: Path
) -> list[list[EngineToMeasure]]:
    """Describe one engine for each pool, in groups that run at the same time.

    All are one group if cores or GPUs and memory suffice, as in life; else each is a group of its own. With
    `pools: auto` both pools are the worker that a planner begins with. Raises ConfigError if one alone does not fit.
    """
    check_model(config, base)
    if config.pools == "auto":
        worker = planned_worker(config)
        config = config.model_copy(update={"pools": PoolsConfig(prefill=worker, decode=worker)})
    roles = [role for role in roles if pool_config(config, role).replicas > 0]
    if not roles:
        raise ConfigError("the pool to be measured has no workers; choose the other one with --pool")
    together = [_engine(config, role, machine, run_dir, base) for role in roles]
    for engine in together:
        _check_alone(engine, machine)
    if _memory_bytes(together) > machine.free_bytes or sum(len(e.gpus) for e in together) > len(machine.gpu_names):
        return [[engine] for engine in together]
    return [_apart(config, together, machine)]


def device_name(config_cpus: int, machine: Machine) -> str:
    """Name the device of a profile: the GPU, else the processor and how many of its cores a worker has."""
    if machine.gpu_names:
        return _slug(machine.gpu_names[0])
    return f"cpu-{_slug(machine.cpu_name)}-{config_cpus}-core" + ("s" if config_cpus != 1 else "")


def check_model(config: BatonConfig, base: Path) -> None:
    """Raise ConfigError if the model can only be a folder and is none that holds a model."""
    location = model_location(config.model.path, base)
    if not os.path.isdir(location):
        if looks_like_folder(config.model.path):
            raise ConfigError(f"model.path: there is no folder {config.model.path}; correct it, or name a hub id")
    elif not os.path.isfile(os.path.join(location, "config.json")):
        raise ConfigError(f"model.path: {location} holds no config.json, so it is no model in Hugging Face format")


def _engine(config: BatonConfig, role: Role, machine: Machine, run_dir: Path, base: Path) -> EngineToMeasure:
    has_gpu = bool(machine.gpu_names)
    engine = engine_spec(config, role.value, has_gpu=has_gpu, base=base)
    spec = WorkerSpec(f"{role}-0", role, 1, "127.0.0.1", str(run_dir), engine, kv=kv_spec(config))
    # What is to be known is the time of a full step, whoever fills it.
    traced = replace(engine, shared_step_tokens=None, extra_args=(*engine.extra_args, *flags(trace_file(spec))))
    count = gpus_per_worker(pool_config(config, role), has_gpu=has_gpu) if has_gpu else 0
    return EngineToMeasure(replace(spec, engine=traced), tuple(range(count)))


def _check_alone(engine: EngineToMeasure, machine: Machine) -> None:
    pool = f"pools.{engine.spec.role}"
    if len(engine.gpus) > len(machine.gpu_names):
        raise ConfigError(
            f"{pool}: a worker takes {len(engine.gpus)} GPUs and this machine has {len(machine.gpu_names)}; "
            f"lower {pool}.tensor_parallel, or profile on a machine that has them"
        )
    needed = _memory_bytes([engine])
    if needed > machine.free_bytes:
        raise ConfigError(
            f"{pool}: an engine needs about {needed >> 20} MiB of memory and {machine.free_bytes >> 20} MiB are free; "
            f"lower {pool}.kv_cache_mb, stop what runs here (`baton down`), or take a smaller model"
        )


def _apart(config: BatonConfig, engines: Sequence[EngineToMeasure], machine: Machine) -> list[EngineToMeasure]:
    """Give engines that run at the same time GPUs or cores of their own.

    Cores are pinned as `baton up` does on one machine: if there is more than one worker and cores for all.
    """
    placed: list[EngineToMeasure] = []
    first_gpu = 0
    for engine in engines:
        gpus = tuple(range(first_gpu, first_gpu + len(engine.gpus)))
        first_gpu += len(engine.gpus)
        placed.append(replace(engine, gpus=gpus))
    pools = [pool_config(config, role) for role in Role]
    counts = {role: max(int(pool_config(config, role).cpus), 1) for role in Role}
    wanted = sum(pool.replicas * counts[role] for role, pool in zip(Role, pools, strict=True))
    if any(engine.gpus for engine in placed) or sum(p.replicas for p in pools) < 2 or wanted > len(machine.cores):
        return placed
    begin = 0
    for index, engine in enumerate(placed):
        count = counts[engine.spec.role]
        cores = machine.cores[begin : begin + count]
        placed[index] = replace(engine, spec=replace(engine.spec, cpus=cores))
        begin += count
    return placed


def _memory_bytes(engines: Sequence[EngineToMeasure]) -> int:
    """Estimate the host memory that engines on CPU take; those on GPUs take that of the host only while they load."""
    total = 0
    for engine in engines:
        spec = engine.spec.engine
        total += _PROCESS_BYTES
        if not engine.gpus:
            ranks = spec.tensor_parallel * spec.pipeline_parallel
            total += _weight_bytes(Path(spec.model_path)) + (spec.kv_cache_bytes or 0) * ranks
    return total


def _weight_bytes(model: Path) -> int:
    if not model.is_dir():
        return 0
    return sum(file.stat().st_size for file in model.iterdir() if file.suffix in _WEIGHT_FILES)


def visible_gpus(gpus: Sequence[int]) -> Mapping[str, str]:
    """Return the environment that shows an engine only these GPUs."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if gpus else {}


def _gpu_names() -> tuple[str, ...]:
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = (pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount()))
        names = [pynvml.nvmlDeviceGetName(handle) for handle in handles]
    finally:
        pynvml.nvmlShutdown()
    return tuple(name.decode() if isinstance(name, bytes) else name for name in names)


def _cpu_name(cpuinfo: str) -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match[1] if match else os.uname().machine


def _free_bytes(meminfo: str) -> int:
    match = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo, re.MULTILINE)
    return int(match[1]) << 10 if match else 1 << 62


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text()
    except OSError:
        return ""


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
