"""The command that makes a device file: the file loads again, and mistakes are told in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.import_device import main
from core.latency.device_file import SHIPPED, load_device
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
        table: dict[str, object] = {name: axis.ravel() for name, axis in zip(names, mesh, strict=True)}
        rows = mesh[0].size
        if kernel == "prefill_attention":
            table["num_key_value_heads"] = mesh[2].ravel() / mesh[3].ravel()
        table |= {"num_heads": np.full(rows, 8.0)} if kernel == "decode_attention" else {}
        table |= {"kv_cache_dtype": ["bfloat16"] * rows, "backend": ["vllm_graph"] * rows}
        table["latency_ms"] = np.ones(rows)
        dtypes = [["bfloat16"] * rows, ["fp8"] * rows] if kernel == "gemm_bfloat16" else [None]
        parts = [pyarrow.table(table | ({"gemm_dtype": dtype} if dtype else {})) for dtype in dtypes]
        parquet.write_table(pyarrow.concat_tables(parts), folder / f"{kernel}.parquet")
        paths.append(str(folder / f"{kernel}.parquet"))
    return paths


def servings(folder: Path) -> str:
    """Write servings of a dense and a routed model on "toy", two configurations each."""
    path = folder / "servings.csv"
    columns = "model_path,system,precision,backend,mode,isl,osl,batch_size,tp_size,concurrency"
    columns += ",silicon_ttft_ms,silicon_tpot_ms"
    rows = [
        f"{model},toy,fp8,vllm,agg,{isl},64,{c},1,{c},{200 + isl / 10},{20 + c}"
        for model in ("Llama-3.1-8B", "gpt-oss-20b")
        for isl in (1000, 2000)
        for c in (1, 4)
    ]
    path.write_text("\n".join([columns, *rows]))
    return str(path)


def test_the_file_that_is_written_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "toy.json"
    made = [*tables(tmp_path), "--servings", servings(tmp_path), *FLAGS, *MORE]
    assert main([*made, "--out", str(out)]) == 0
    device = load_device(str(out))
    assert (device.name, device.memory_bytes) == ("toy", 10e9)
    assert device.kernels.decode_attention_s(4, 512, 2, 2 * 2 * 128 * 2, 0.0) == pytest.approx(1e-3, rel=0.2)
    assert device.engine != device.routed_engine
    assert min(device.engine.prefill_error, device.routed_engine.decode_error) > 0
    assert main([*made, "--out", str(tmp_path / "again.json")]) == 0
    assert (tmp_path / "again.json").read_text() == out.read_text()
    report = capsys.readouterr().out
    assert all(kernel in report for kernel in AXES)


def test_a_missing_kernel_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "toy.json"
    made = [*tables(tmp_path)[:1], "--servings", servings(tmp_path), *FLAGS, *MORE]
    assert main([*made, "--out", str(out)]) == 2
    assert "prefill_attention" in capsys.readouterr().err
    assert not out.exists()


def test_a_data_sheet_takes_the_kernels_of_a_measured_device_and_is_less_sure(tmp_path: Path) -> None:
    out = tmp_path / "toy.json"
    assert main(["--kernels-of", "h100-sxm", *FLAGS, *MORE, "--out", str(out)]) == 0
    (tmp_path / "h100-sxm.json").write_text((SHIPPED / "h100-sxm.json").read_text())  # the files lie side by side
    device, base = load_device(str(out)), load_device("h100-sxm")
    assert device.kernels.decode_attention == base.kernels.decode_attention
    assert device.kernels.peaks.bytes_per_s == 1e12
    assert base.engine.prefill_error < device.engine.prefill_error < base.engine.prefill_error + 0.3
    assert device.engine.prefill_scale == base.engine.prefill_scale


@pytest.mark.parametrize("wrong", [[], ["--kernels-of", "h100-sxm", "--servings", "x.csv"], ["--kernels-of", "v100"]])
def test_a_wrong_mix_of_flags_is_told(wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "toy.json"
    assert main([*wrong, *FLAGS, *MORE, "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("error:")
    assert not out.exists()


def test_too_few_servings_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = servings(tmp_path)
    lines = [line for line in Path(path).read_text().splitlines() if "gpt-oss" not in line]
    Path(path).write_text("\n".join(lines))
    assert main([*tables(tmp_path), "--servings", path, *FLAGS, *MORE, "--out", str(tmp_path / "toy.json")]) == 2
    assert "too few servings of routed models" in capsys.readouterr().err
