"""Turns a WorkerSpec into what `vllm serve` would have parsed.

Owns flag names. Knows vLLM's command-line parser and nothing else of it.
"""

from __future__ import annotations

import contextlib
import io
import json
from argparse import Namespace
from collections.abc import Mapping

from core.errors import ConfigError
from core.worker_spec import EngineSpec, WorkerSpec
from engine.vllm_scheduler import FACTORY

CONNECTOR = "BatonConnector"
CONNECTOR_MODULE = "kv_transfer.connector"
SCHEDULER_FLAG = "--scheduler-cls"
WORKER_FLAG = "--worker-extension-cls"
WORKER_EXTENSION = "engine.vllm_resume_worker.ResumingWorker"  # named, for it imports vLLM
NO_TRANSPORT = "none"  # kv.transport of a worker that hands nothing over


def serve_flags(spec: WorkerSpec, connector_config: Mapping[str, object]) -> list[str]:
    """List the flags of `vllm serve` for `spec`; the user's own extra flags come last and so win."""
    engine = spec.engine
    flags = [
        *("--model", engine.model_path),
        *("--served-model-name", engine.served_model_name),
        *("--dtype", engine.dtype),
        *("--block-size", str(engine.block_size)),
        *("--max-num-seqs", str(engine.max_num_seqs)),
        *("--max-num-batched-tokens", str(engine.max_num_batched_tokens)),
        *("--tensor-parallel-size", str(engine.tensor_parallel)),
        *("--pipeline-parallel-size", str(engine.pipeline_parallel)),
        *("--distributed-executor-backend", _executor(engine)),
        "--enable-prefix-caching" if engine.enable_prefix_caching else "--no-enable-prefix-caching",
        "--disable-fastapi-docs",
    ]
    if not any(arg.startswith(SCHEDULER_FLAG) for arg in engine.extra_args):  # vLLM warns of a flag given twice
        flags += [SCHEDULER_FLAG, FACTORY]
    if not any(arg.startswith(WORKER_FLAG) for arg in engine.extra_args):
        flags += [WORKER_FLAG, WORKER_EXTENSION]
    if engine.shared_step_tokens is not None:
        flags += ["--long-prefill-token-threshold", str(engine.shared_step_tokens)]
    if engine.max_model_len is not None:
        flags += ["--max-model-len", str(engine.max_model_len)]
    if engine.kv_cache_bytes is not None:
        flags += ["--kv-cache-memory-bytes", str(engine.kv_cache_bytes)]
    if engine.enforce_eager:
        flags.append("--enforce-eager")
    flags += _lora_flags(engine)
    if spec.kv.transport != NO_TRANSPORT:
        flags += ["--kv-transfer-config", json.dumps(_kv_transfer_config(connector_config))]
    return [*flags, *engine.extra_args]


def parse_flags(flags: list[str]) -> Namespace:
    """Parse flags as `vllm serve` does. Raises ConfigError with vLLM's own words when it refuses them."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    except ImportError:  # vLLM before 0.32
        from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
        validate_parsed_serve_args(args)
    except SystemExit as exc:
        # Before it come four hundred lines of usage.
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise ConfigError(f"vLLM refuses the engine's flags: {reason}") from exc
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"vLLM refuses the engine's flags: {exc}") from exc
    return args


def _executor(engine: EngineSpec) -> str:
    return "uni" if engine.tensor_parallel * engine.pipeline_parallel == 1 else "mp"


def _lora_flags(engine: EngineSpec) -> list[str]:
    if not engine.lora_adapters:
        return []
    return [
        "--enable-lora",
        *("--max-loras", str(len(engine.lora_adapters))),
        *("--max-lora-rank", str(engine.max_lora_rank)),
        "--lora-modules",
        *(f"{name}={path}" for name, path in engine.lora_adapters),
    ]


def _kv_transfer_config(connector_config: Mapping[str, object]) -> dict[str, object]:
    return {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": CONNECTOR_MODULE,
        # Any worker may have to serve a whole request or the other leg.
        "kv_role": "kv_both",
        # A hand-over that fails costs time, never the request.
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": dict(connector_config),
    }
