"""The command that makes a device file: the file loads again, and mistakes are told in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.import_device import main
from core.latency.device_file import load_device
from core.latency.device_fit import AXES

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
FLAGS = [
    "--name",
    "toy",
    "--source",
    "invented; data sheet of nothing",
    "--memory-gb",
    "10",
    "--memory-gb-per-s",
    "1000",
]
MORE = ["--bfloat16-tflops", "100", "--fp8-tflops", "200", "--link-gb-per-s", "100"]


def tables(folder: Path) -> list[str]:
    """Write one table of each kind, with a row at every knot and one millisecond each."""
    columns = {
        "gemm_bfloat16": ("m", "n", "k"),
        "prefill_attention": ("batch_size", "isl", "num_heads", "num_key_value_heads"),
        "decode_attention": ("batch_size", "ctx", "num_key_value_heads"),
        "all_reduce": ("num_gpus", "message_size"),
    }
    paths = []
    for kernel, names in columns.items():
        mesh = np.meshgrid(*AXES[kernel], indexing="ij")
        table = {name: axis.ravel() for name, axis in zip(names, mesh, strict=True)}
        rows = len(table[names[0]])
        if kernel == "prefill_attention":
            table["num_key_value_heads"] = table["num_heads"] / table["num_key_value_heads"]
        table |= {"num_heads": np.full(rows, 8.0)} if kernel == "decode_attention" else {}
        table |= {"kv_cache_dtype": ["bfloat16"] * rows, "backend": ["vllm_graph"] * rows}
        table["latency_ms"] = np.ones(rows)
        dtypes = [["bfloat16"] * rows, ["fp8"] * rows] if kernel == "gemm_bfloat16" else [None]
        parts = [pyarrow.table(table | ({"gemm_dtype": dtype} if dtype else {})) for dtype in dtypes]
        parquet.write_table(pyarrow.concat_tables(parts), folder / f"{kernel}.parquet")
        paths.append(str(folder / f"{kernel}.parquet"))
    return paths


def test_the_file_that_is_written_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "toy.json"
    assert main([*tables(tmp_path), *FLAGS, *MORE, "--out", str(out)]) == 0
    device = load_device(str(out))
    assert (device.name, device.memory_bytes) == ("toy", 10e9)
    assert device.kernels.decode_attention_s(4, 512, 2, 2 * 2 * 128 * 2, 0.0) == pytest.approx(1e-3, rel=0.2)
    report = capsys.readouterr().out
    assert all(kernel in report for kernel in AXES)


def test_a_missing_kernel_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "toy.json"
    assert main([*tables(tmp_path)[:1], *FLAGS, *MORE, "--out", str(out)]) == 2
    assert "prefill_attention" in capsys.readouterr().err
    assert not out.exists()
