"""Who a vLLM engine is: the fingerprint that pairs it, and what its KV connector is told and tells.

Owns digests of what a spec names, and the connector's configuration and endpoint file. Must not start anything.
"""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from core.engine import EngineDescription
from core.errors import StartFailed
from core.types import Fingerprint
from core.worker_spec import WorkerSpec
from engine.fingerprint import adapters_digest, combined_digest, model_digest, tokenizer_digest
from engine.vllm_args import NO_TRANSPORT

if TYPE_CHECKING:
    from vllm.config import VllmConfig

NO_LAYOUT = "none"  # layout of an engine that hands nothing over


def endpoint_file(spec: WorkerSpec) -> Path:
    """Return the file into which the KV connector writes its address and layout once it listens."""
    return Path(spec.run_dir) / f"{spec.worker_id}.kv.json"


def connector_config(spec: WorkerSpec) -> dict[str, object]:
    """Return what the KV connector is told; its fingerprint holds what is known before the start."""
    folder = _model_folder(spec.engine.model_path)
    engine = spec.engine
    fingerprint = combined_digest(
        (
            _engine_version(),
            model_digest(folder) if folder else engine.model_path,
            tokenizer_digest(folder, _chat_template(spec)) if folder else "",
            engine.dtype,
            engine.block_size,
            engine.tensor_parallel,
            engine.pipeline_parallel,
            adapters_digest(engine.lora_adapters),
        )
    )
    return {
        "worker_id": spec.worker_id,
        "epoch": spec.epoch,
        "role": spec.role.value,
        "host": spec.host,
        "port": spec.kv.port,
        "endpoint_file": str(endpoint_file(spec)),
        "transport": spec.kv.transport,
        "lease_s": spec.kv.lease_s,
        "staging_bytes": spec.kv.staging_bytes,
        "verify_share": spec.kv.verify_share,
        "token": spec.token,
        "tls": asdict(spec.tls) if spec.tls else None,
        "fingerprint": fingerprint,
        "faults": dict(spec.kv.faults),
    }


def endpoint_files(spec: WorkerSpec) -> list[Path]:
    """List the endpoint files of all ranks, by rank."""
    first = endpoint_file(spec)
    ranks = spec.engine.tensor_parallel * spec.engine.pipeline_parallel
    return [first, *(first.with_name(f"{first.name}.rank{rank}") for rank in range(1, ranks))]


def read_endpoint(spec: WorkerSpec) -> tuple[str, str]:
    """Return KV address and layout, as the connector wrote them when it began to listen. Raises StartFailed.

    The addresses of several ranks are joined by commas; their layouts are equal.
    """
    if spec.kv.transport == NO_TRANSPORT:
        return "", NO_LAYOUT
    addresses: list[str] = []
    layout = NO_LAYOUT
    for file in endpoint_files(spec):
        try:
            raw = json.loads(file.read_text())
            addresses.append(str(raw["address"]))
            layout = str(raw["layout"])
        except (OSError, ValueError, KeyError) as exc:
            raise StartFailed(f"the KV connector left no endpoint in {file}: {exc}") from exc
    return ",".join(addresses), layout


def describe(config: VllmConfig, args: Namespace, spec: WorkerSpec) -> EngineDescription:
    """Describe an engine that is up, by the configuration vLLM settled on. Raises StartFailed."""
    kv_address, layout = read_endpoint(spec)
    folder = _model_folder(spec.engine.model_path)
    parallel = config.parallel_config
    return EngineDescription(
        model=spec.engine.served_model_name,
        max_model_len=config.model_config.max_model_len,
        num_kv_blocks=config.cache_config.num_gpu_blocks - 1,  # one block is vLLM's null block
        kv_address=kv_address,
        fingerprint=Fingerprint(
            engine=_engine_version(),
            model=model_digest(folder) if folder else spec.engine.model_path,
            tokenizer=tokenizer_digest(folder, args.chat_template or "") if folder else "",
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            cache_dtype=str(config.cache_config.cache_dtype),
            block_size=config.cache_config.block_size,
            layout=layout,
            tensor_parallel=parallel.tensor_parallel_size,
            pipeline_parallel=parallel.pipeline_parallel_size,
            adapters=adapters_digest(spec.engine.lora_adapters),
        ),
    )


def _model_folder(model_path: str) -> Path | None:
    """Return the folder of the model, for a hub id that of its local snapshot; None when there is none yet."""
    if Path(model_path).is_dir():
        return Path(model_path)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model_path, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _chat_template(spec: WorkerSpec) -> str:
    args = spec.engine.extra_args
    for position, flag in enumerate(args):
        if flag == "--chat-template" and position + 1 < len(args):
            return args[position + 1]
        if flag.startswith("--chat-template="):
            return flag.partition("=")[2]
    return ""


def _engine_version() -> str:
    import vllm

    return f"vllm {vllm.__version__}"
