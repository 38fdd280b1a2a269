"""Reads measured kernel latencies from parquet tables, in the form the AIConfigurator project publishes them.

Owns the tables' columns. Must not know fits or models. Needs pyarrow, which nothing else here does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.latency.device_fit import Samples

_Columns = Mapping[str, NDArray[np.float64] | NDArray[np.str_]]
_KINDS = ("gemm", "context-attn", "generation-attn", "allreduce")


def read_kernel_tables(paths: Sequence[Path]) -> dict[str, Samples]:
    """Read the rows of each kernel that core.latency.device_fit fits; a kernel without rows is absent.

    Attention rows count with a bfloat16 cache, all-reduce rows inside CUDA graphs: what decode steps use. Raises
    ConfigError for a missing pyarrow, an unreadable file or a table of an unknown kind.
    """
    found: dict[str, Samples] = {}
    for path in paths:
        columns = _read(path)
        if "gemm_dtype" in columns:
            found |= _gemm(columns)
        elif "isl" in columns:
            ratio = _floats(columns, "num_heads") / _floats(columns, "num_key_value_heads")
            points = np.column_stack([_floats(columns, c) for c in ("batch_size", "isl", "num_heads")] + [ratio])
            found |= _chosen("prefill_attention", columns, points, columns["kv_cache_dtype"] == "bfloat16")
        elif "ctx" in columns:
            points = np.column_stack([_floats(columns, c) for c in ("batch_size", "ctx", "num_key_value_heads")])
            found |= _chosen("decode_attention", columns, points, columns["kv_cache_dtype"] == "bfloat16")
        elif "message_size" in columns:
            # The size counts bfloat16 values: as bytes, the largest would use a third of NVLink, and measured prefills
            # on eight devices would be shorter than their sums.
            points = np.column_stack([_floats(columns, "num_gpus"), 2.0 * _floats(columns, "message_size")])
            found |= _chosen("all_reduce", columns, points, columns["backend"] == "vllm_graph")
        else:
            raise ConfigError(f"{path} is none of the kernel tables known here: {', '.join(_KINDS)}")
    return found


def _read(path: Path) -> dict[str, NDArray[np.float64] | NDArray[np.str_]]:
    try:
        import pyarrow.parquet
    except ImportError as exc:
        raise ConfigError("kernel tables need pyarrow: pip install pyarrow") from exc
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.lib.ArrowException) as exc:
        raise ConfigError(f"cannot read the kernel table {path}: {exc}") from exc
    if "latency_ms" not in table.column_names:
        raise ConfigError(f"{path} has no column latency_ms; give a kernel table of measured latencies")
    return {name: np.array(table.column(name).to_pylist()) for name in table.column_names}


def _floats(columns: _Columns, name: str) -> NDArray[np.float64]:
    return np.asarray(columns[name], np.float64)


def _gemm(columns: _Columns) -> dict[str, Samples]:
    points = np.column_stack([_floats(columns, c) for c in ("m", "n", "k")])
    kinds = ("gemm_bfloat16", "bfloat16"), ("gemm_fp8", "fp8")
    return {
        name: samples
        for kernel, dtype in kinds
        for name, samples in _chosen(kernel, columns, points, columns["gemm_dtype"] == dtype).items()
    }


def _chosen(
    name: str, columns: _Columns, points: NDArray[np.float64], rows: NDArray[np.bool_] | bool
) -> dict[str, Samples]:
    keep = np.broadcast_to(rows, len(points)) & (_floats(columns, "latency_ms") > 0)
    if not keep.any():
        return {}
    return {name: Samples(points[keep], _floats(columns, "latency_ms")[keep] / 1e3)}
