"""`python -m bench.import_profile --data DIR`: the files of deploy/profiles, from public measurements.

DIR holds the files under the names in `_PROFILES` and `_LINKS`; deploy/profiles/README.md says where each is from.
Prints what it wrote, with the errors, and the links. Must not know how engines are measured (bench.profile_engine).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.profile_sources import layer_tables, splitwise_samples, transfer_points
from core.errors import ConfigError
from core.latency.distserve import ServedModel, distserve_profile
from core.latency.fit import Fit, fit_step_cost
from core.latency.least_squares import Floats
from core.latency.profile import EngineProfile, ShapeProfile, profile_to_json, rounded
from core.latency.transfer import fit_transfer, kv_bytes_per_token

_OUT = Path(__file__).resolve().parents[1] / "deploy" / "profiles"
_GIB, _MIB = 1 << 30, 1 << 20
# vLLM's default share of the memory; what it keeps of that for activations and CUDA graphs is our estimate.
_MEMORY_SHARE, _RESERVED_BYTES = 0.9, 2 * 10**9
_WEIGHT_BYTES = 2  # bf16 and fp16
# What a step of vLLM takes beyond its kernels, which is all that the layer tables hold: fitted on the first 150 of the
# 300 real requests by `python -m bench.fidelity_real`, which reports on the other 150.
_STEP_OVERHEAD_S = 1.2e-3
# The tables reach to contexts of 16,384 tokens; their attention is no straight line so far. This is the range of chats.
_LONGEST_CONTEXT = 4096


def kv_capacity_tokens(*, memory_gib: float, devices: int, parameters: float, kv_token_bytes: int) -> int:
    """Return the KV tokens that fit beside the weights; an estimate, for sources that do not say it."""
    room = devices * (memory_gib * _GIB * _MEMORY_SHARE - _RESERVED_BYTES) - parameters * _WEIGHT_BYTES
    return int(room // kv_token_bytes)


def _opt(data: Path, name: str, *, layers: int, hidden: int) -> tuple[EngineProfile, str]:
    model = ServedModel(
        name=f"facebook/{name}",
        kv_bytes_per_token=kv_bytes_per_token(layers=layers, kv_heads=1, head_dim=hidden),
        max_model_len=2048,
    )
    profile = distserve_profile(
        _text(data / "distserve-a100-opt.json"),
        _text(data / "distserve-a100-max-num-tokens.csv"),
        model,
        device="a100-sxm-80gb",
        source="github.com/LLMServe/DistServe simdistserve/estimators/profile_data (Apache-2.0)",
    )
    return profile, "coefficients as published, their error is not stated"


def _splitwise(data: Path, hardware: str, device: str) -> tuple[EngineProfile, str]:
    kv_token_bytes = kv_bytes_per_token(layers=80, kv_heads=8, head_dim=128)
    shapes, said = [], []
    for tensor_parallel in (4, 8):
        samples = splitwise_samples(
            data / "splitwise-llama2-70b.csv",
            model="llama2-70b",
            hardware=hardware,
            tensor_parallel=tensor_parallel,
        )
        fit = fit_step_cost(samples)
        capacity = kv_capacity_tokens(
            memory_gib=80, devices=tensor_parallel, parameters=68.98e9, kv_token_bytes=kv_token_bytes
        )
        shapes.append(_shape(fit, tensor_parallel, capacity))
        said.append(f"tp{tensor_parallel} {_errors(fit)}")
    profile = EngineProfile(
        model="meta-llama/Llama-2-70b-hf",
        device=device,
        engine="vllm (of Splitwise, 2023)",
        source="github.com/Mutinifni/splitwise-sim data/perf_model.csv (MIT)",
        shapes=tuple(shapes),
        kv_bytes_per_token=kv_token_bytes,
        max_model_len=4096,
    )
    return profile, "; ".join(said)


def _llama_8b(data: Path) -> tuple[EngineProfile, str]:
    start = "llmservingsim-rtxpro6000-llama31-8b-tp1"
    tables = layer_tables(
        data / f"{start}-attention.csv.gz",
        data / f"{start}-dense.csv.gz",
        data / f"{start}-per_sequence.csv.gz",
        layers=32,
    )
    fit = fit_step_cost(tables.samples(overhead_s=_STEP_OVERHEAD_S, longest_context=_LONGEST_CONTEXT))
    kv_token_bytes = kv_bytes_per_token(layers=32, kv_heads=8, head_dim=128)
    capacity = kv_capacity_tokens(memory_gib=96, devices=1, parameters=8.03e9, kv_token_bytes=kv_token_bytes)
    profile = EngineProfile(
        model="meta-llama/Llama-3.1-8B",
        device="rtx-pro-6000-96gb",
        engine="vllm 0.19.0",
        source="github.com/casys-kaist/LLMServingSim profiler/perf/RTXPRO6000/meta-llama/Llama-3.1-8B/bf16/tp1 (MIT)",
        shapes=(_shape(fit, 1, capacity),),
        kv_bytes_per_token=kv_token_bytes,
        max_model_len=131072,
    )
    return profile, _errors(fit)


def _shape(fit: Fit, tensor_parallel: int, capacity: int) -> ShapeProfile:
    return ShapeProfile(
        tensor_parallel=tensor_parallel,
        pipeline_parallel=1,
        cost=fit.cost,
        kv_capacity_tokens=capacity,
        prefill_error=fit.prefill_error,
        decode_error=fit.decode_error,
    )


def _errors(fit: Fit) -> str:
    kinds = [("prefill", fit.prefill_residuals), ("decode", fit.decode_residuals), ("mixed", fit.mixed_residuals)]
    return ", ".join(f"{name} {_summary(residuals)}" for name, residuals in kinds if len(residuals))


def _summary(residuals: Floats) -> str:
    size = np.abs(residuals)
    return f"mean {size.mean():.1%} median {np.median(size):.1%} worst {size.max():.0%} of {len(size)}"


_PROFILES: dict[str, Callable[[Path], tuple[EngineProfile, str]]] = {
    "opt-13b-a100": lambda data: _opt(data, "opt-13b", layers=40, hidden=5120),
    "opt-66b-a100": lambda data: _opt(data, "opt-66b", layers=64, hidden=9216),
    "llama-2-70b-a100": lambda data: _splitwise(data, "a100-80gb", "a100-sxm-80gb"),
    "llama-2-70b-h100": lambda data: _splitwise(data, "h100-80gb", "h100-sxm-80gb"),
    "llama-3.1-8b-rtxpro6000": _llama_8b,
}
_LINKS = {"a100": "vidur-a100_dgx-send-recv.csv", "h100": "vidur-h100_dgx-send-recv.csv"}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); --data names the folder of the public files") from error


def _link_lines(data: Path) -> Iterator[str]:
    for device, name in _LINKS.items():
        for devices_per_node, where in ((2, "inside a node"), (1, "between nodes")):
            model = fit_transfer(transfer_points(data / name, devices_per_node=devices_per_node))
            line = model.line(64 * _MIB)
            yield (
                f"link {device} {where}: 64 MiB in {model.seconds(64 * _MIB) * 1e3:.2f} ms; near that "
                f"{line.latency_s * 1e6:.0f} us + bytes / {line.bytes_per_s / 1e9:.1f} GB/s; error {model.error:.1%}"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write every profile and print the errors of each."""
    parser = argparse.ArgumentParser(prog="python -m bench.import_profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the public files")
    parser.add_argument("--out", type=Path, default=_OUT, help="where the profiles go")
    options = parser.parse_args(arguments)
    try:
        for name, made in _PROFILES.items():
            profile, said = made(options.data)
            (options.out / f"{name}.json").write_text(profile_to_json(rounded(profile)), encoding="utf-8")
            sys.stdout.write(f"{name}: {said}\n")
        for line in _link_lines(options.data):
            sys.stdout.write(f"{line}\n")
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
