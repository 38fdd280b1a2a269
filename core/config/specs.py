"""From the configuration to what a worker process is told.

Owns the mapping of keys to the fields of core.worker_spec, and the defaults that depend on the machine. Must not know
how workers are placed or started.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.component_tls import ComponentTLS
from core.config.model_files import file_location, model_location, read_model_facts
from core.config.models import BatonConfig, PoolConfig, PoolsConfig
from core.errors import ConfigError
from core.types import Role
from core.worker_spec import EngineSpec, KVSpec

MIB = 1 << 20
CPU_KV_CACHE_MB = 512  # of one CPU worker: the engine touches all of it at start, and laptops are small


def served_model_name(config: BatonConfig) -> str:
    """Say what name clients use: `model.name`, else the last part of `model.path`."""
    return config.model.name or Path(config.model.path).name or config.model.path


def default_slo_class(config: BatonConfig) -> str:
    """Say the class of requests that name none: `slo.default`, else the first class listed."""
    return config.slo.default or next(iter(config.slo.classes))


def named_pools(config: BatonConfig) -> PoolsConfig:
    """Return both pools. Raises ConfigError while they are still to be planned."""
    if config.pools == "auto":
        raise ConfigError(
            "pools: auto names no pools before they are planned; `baton plan` shows what `up` would start"
        )
    return config.pools


def pool_config(config: BatonConfig, pool_name: str) -> PoolConfig:
    """Look a pool up by the name of its role.

    Raises ValueError for any other name, ConfigError while the pools are still to be planned.
    """
    pools = named_pools(config)
    return {Role.PREFILL: pools.prefill, Role.DECODE: pools.decode}[Role(pool_name)]


def planned_worker(config: BatonConfig) -> PoolConfig:
    """Return the pool that a planner begins with: one worker with the cores and the KV cache that `plan` gives it."""
    return PoolConfig(cpus=config.plan.cpus, kv_cache_mb=config.plan.kv_cache_mb)


def with_absolute_profile(config: BatonConfig, base: Path) -> BatonConfig:
    """Make `plan.profile` a path that every process understands; a relative one begins in `base`."""
    if config.plan.profile is None:
        return config
    plan = config.plan.model_copy(update={"profile": file_location(config.plan.profile, base)})
    return config.model_copy(update={"plan": plan})


def gpus_per_worker(pool: PoolConfig, *, has_gpu: bool) -> int:
    """Say how many GPUs one worker takes: `gpus`, else what its parallelism needs, else none without GPUs."""
    if pool.gpus is not None:
        return pool.gpus
    return pool.tensor_parallel * pool.pipeline_parallel if has_gpu else 0


def engine_spec(config: BatonConfig, pool_name: str, *, has_gpu: bool = False, base: Path | None = None) -> EngineSpec:
    """Describe the engine of one worker of a pool.

    `has_gpu` says whether the worker gets a GPU: without one, a KV cache of no given size is 512 MiB and kernels are
    not compiled (it takes over a minute on a CPU). A model or an
    adapter that is a folder gets its absolute path, seen from `base` (default: the working directory). Raises
    ValueError for an unknown pool.
    """
    pool = pool_config(config, pool_name)
    arguments = dict(config.model.engine_args)
    eager = _take_switch(arguments, "enforce-eager")
    prefix_caching = _take_switch(arguments, "enable-prefix-caching")
    return EngineSpec(
        kind="vllm",
        model_path=model_location(config.model.path, base),
        served_model_name=served_model_name(config),
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        block_size=config.model.block_size,
        max_num_seqs=pool.max_num_seqs,
        max_num_batched_tokens=pool.max_num_batched_tokens,
        shared_step_tokens=_shared_step_tokens(config, pool_name, base),
        kv_cache_bytes=_kv_cache_bytes(pool, has_gpu=has_gpu),
        tensor_parallel=pool.tensor_parallel,
        pipeline_parallel=pool.pipeline_parallel,
        enforce_eager=not has_gpu if eager is None else eager,
        enable_prefix_caching=True if prefix_caching is None else prefix_caching,
        lora_adapters=tuple((adapter.name, model_location(adapter.path, base)) for adapter in config.model.lora),
        extra_args=engine_flags(arguments),
    )


def kv_spec(config: BatonConfig) -> KVSpec:
    """Describe how every worker hands KV over; what `auto` means is found out by the workers, pair by pair."""
    return KVSpec(
        transport=config.kv.transport,
        lease_s=config.kv.lease_s,
        staging_bytes=config.kv.staging_mb * MIB,
        faults=(("runtime", "1"),) if config.kv.allow_faults else (),
    )


def component_tls(config: BatonConfig, base: Path | None = None) -> ComponentTLS | None:
    """Say where each process finds its certificate; None for no TLS between components.

    Relative paths start at `base` (default: the working directory), else at the checkout.
    """
    security = config.security
    if security.ca is None or security.cert is None or security.key is None:
        return None
    ca, cert, key = (file_location(path, base) for path in (security.ca, security.cert, security.key))
    return ComponentTLS(ca, cert, key, security.name)


def engine_flags(arguments: Mapping[str, str | int | float | bool]) -> tuple[str, ...]:
    """Write `model.engine_args` as flags: `{a_b: 1}` is `--a-b 1`, true is `--a-b`, false is `--no-a-b`."""
    flags: list[str] = []
    for key, value in arguments.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", str(value)]
    return tuple(flags)


def _shared_step_tokens(config: BatonConfig, pool_name: str, base: Path | None) -> int | None:
    """Say how much of a step one prompt may take when it is not alone; vLLM wants it within the model's length.

    On a prefill worker a quarter is left: a prompt of 64 tokens behind one of 1,000 in steps of 256 then has its token
    after 2 steps instead of 5, and the long one after 5 instead of 4.
    """
    pool = pool_config(config, pool_name)
    wanted = pool.shared_step_tokens
    if wanted is None and pool_name == Role.PREFILL:
        wanted = max(1, pool.max_num_batched_tokens * 3 // 4)
    facts = read_model_facts(config.model.path, base)
    limit = config.model.max_model_len or (facts.max_model_len if facts else None)
    if wanted is None or limit is None:
        return pool.shared_step_tokens
    return min(wanted, limit)


def _kv_cache_bytes(pool: PoolConfig, *, has_gpu: bool) -> int | None:
    """Size the KV cache of one rank: the worker's share is even, by heads and by layers."""
    kv_cache_mb = pool.kv_cache_mb if pool.kv_cache_mb is not None or has_gpu else CPU_KV_CACHE_MB
    if kv_cache_mb is None:
        return None
    return kv_cache_mb * MIB // (pool.tensor_parallel * pool.pipeline_parallel)


def _take_switch(arguments: dict[str, str | int | float | bool], name: str) -> bool | None:
    """Take a true or false argument that has a field of its own out of `arguments`; None if it is not there."""
    for key in list(arguments):
        plain = key.replace("_", "-")
        value = arguments[key]
        if plain.removeprefix("no-") == name and isinstance(value, bool):
            del arguments[key]
            return value != plain.startswith("no-")
    return None
