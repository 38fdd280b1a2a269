"""What is benchmarked: a URL, or a system that is started for it and stopped after.

Owns the names of targets. Must not measure.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import stacks
from bench.serving.endpoint import Endpoint, endpoint
from core.config.load import load_config
from core.config.model_files import model_location
from core.config.models import PoolConfig
from core.config.specs import served_model_name
from core.errors import ConfigError

ONE_POOL: Final = "one-pool"
_CHUNK_TOKENS: Final = 256  # of one pool on a CPU: the strongest of those measured (docs/benchmarks.md)


@dataclass(frozen=True, slots=True)
class Target:
    """One side of a comparison, or the server of a sweep's run."""

    name: str
    endpoint: Endpoint | None = None  # None: it is started from `config`
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    is_one_pool: bool = False  # the devices of `config`, all in one engine of plain vLLM


@contextmanager
def reached(target: Target) -> Iterator[Endpoint]:
    """Give the endpoint; what was started for it is stopped at the end. Raises StartFailed, ConfigError."""
    if target.endpoint is not None:
        yield target.endpoint
        return
    assert target.config is not None
    load_config(target.config, overrides=target.overrides, environ=os.environ)  # before anything is started
    with _ended_like_ctrl_c(), tempfile.TemporaryDirectory(prefix="baton-bench-") as folder:
        run_dir = Path(folder)
        if target.is_one_pool:
            with stacks.one_pool_of(one_pool(target), run_dir=run_dir) as running:
                yield endpoint(running.url)
        else:
            with stacks.baton(target.config, run_dir=run_dir, overrides=target.overrides) as running:
                yield endpoint(running.url, tls=running.tls, key=running.key)


@contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, so that what was started is stopped, and not left behind."""

    def end(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def one_pool(target: Target) -> stacks.OnePool:
    """Describe one engine of plain vLLM with all devices, seats and KV memory that the pools of a configuration have.

    Raises ConfigError where the pools are planned, for then there is nothing to add up.
    """
    config = load_config(target.config, overrides=target.overrides, environ=os.environ)
    if config.pools == "auto":
        raise ConfigError("one-pool: `pools: auto` names no devices; write the plan into a file with `plan --write`")
    prefill, decode = config.pools.prefill, config.pools.decode
    has_gpu = bool(decode.gpus)
    workers = prefill.replicas + decode.replicas
    return stacks.OnePool(
        model=model_location(config.model.path),
        model_name=served_model_name(config),
        max_model_len=config.model.max_model_len or 4096,
        dtype=config.model.dtype,
        block_size=config.model.block_size,
        threads=max(1, round(_sum(prefill, "cpus") + _sum(decode, "cpus"))),
        chunk_tokens=decode.max_num_batched_tokens if has_gpu else _CHUNK_TOKENS,
        max_num_seqs=max(prefill.max_num_seqs, decode.max_num_seqs),
        kv_mb=None if has_gpu else round(_sum(prefill, "kv_cache_mb") + _sum(decode, "kv_cache_mb")) or 512,
        tensor_parallel=decode.tensor_parallel,
        data_parallel=workers if has_gpu else 1,
    )


def _sum(pool: PoolConfig, name: str) -> float:
    return pool.replicas * float(getattr(pool, name) or 0)
