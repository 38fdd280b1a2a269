"""Kernel tables: each kind is recognised by its columns, the right rows and units are taken, and faults are named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConfigError
from sim.kernel_tables import read_kernel_tables

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

GEMM = {"gemm_dtype": ["bfloat16", "fp8"], "m": [1, 2], "n": [32, 64], "k": [128, 256], "latency_ms": [0.5, 0.25]}
PREFILL = {
    "kv_cache_dtype": ["bfloat16", "fp8"],
    "batch_size": [2, 2],
    "isl": [1024, 1024],
    "num_heads": [32, 32],
    "num_key_value_heads": [8, 8],
    "latency_ms": [1.0, 2.0],
}
DECODE = {**{k: v for k, v in PREFILL.items() if k != "isl"}, "ctx": [4096, 4096]}
ALL_REDUCE = {
    "num_gpus": [2, 2],
    "message_size": [512, 512],
    "backend": ["vllm_graph", "vllm_eager"],
    "latency_ms": [0.004, 0.02],
}


def write(folder: Path, name: str, columns: dict[str, list[object]]) -> Path:
    parquet.write_table(pyarrow.table(columns), folder / name)
    return folder / name


def test_every_kind_is_read_with_its_sizes_in_seconds(tmp_path: Path) -> None:
    tables = {"g": GEMM, "p": PREFILL, "d": DECODE, "a": ALL_REDUCE}
    found = read_kernel_tables([write(tmp_path, name, table) for name, table in tables.items()])
    rows = {name: (s.points.tolist(), s.seconds.tolist()) for name, s in found.items()}
    assert rows == {
        "gemm_bfloat16": ([[1, 32, 128]], [0.5e-3]),
        "gemm_fp8": ([[2, 64, 256]], [0.25e-3]),
        "prefill_attention": ([[2, 1024, 32, 4]], [1e-3]),
        "decode_attention": ([[2, 4096, 8]], [1e-3]),
        "all_reduce": ([[2, 1024]], [pytest.approx(4e-6)]),  # 512 values of two bytes
    }


def test_a_kernel_without_rows_is_absent(tmp_path: Path) -> None:
    table = {**GEMM, "gemm_dtype": ["fp8", "fp8"]}
    assert set(read_kernel_tables([write(tmp_path, "g", table)])) == {"gemm_fp8"}


def test_rows_without_a_time_do_not_count(tmp_path: Path) -> None:
    table = {**GEMM, "gemm_dtype": ["fp8", "fp8"], "latency_ms": [0.0, 0.25]}
    found = read_kernel_tables([write(tmp_path, "g", table)])
    assert np.array_equal(found["gemm_fp8"].points, [[2.0, 64.0, 256.0]])


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of the kernel tables"):
        read_kernel_tables([write(tmp_path, "x", {"latency_ms": [1.0]})])
    with pytest.raises(ConfigError, match="latency_ms"):
        read_kernel_tables([write(tmp_path, "y", {"m": [1]})])


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("no table")
    for path in (tmp_path / "t.parquet", tmp_path / "absent.parquet"):
        with pytest.raises(ConfigError, match=path.name):
            read_kernel_tables([path])


def test_without_pyarrow_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "g", GEMM)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        read_kernel_tables([path])
