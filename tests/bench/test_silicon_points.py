"""Measured servings: how rows are understood, and a split that never parts the rows of one configuration."""

from __future__ import annotations

import csv
import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from bench.silicon_points import Point, Worker, read_points, split
from core.errors import ConfigError

ROW = {
    "backend": "vllm",
    "model_path": "meta-llama/Llama-3.1-70B",
    "system": "h200_sxm",
    "precision": "fp8",
    "mode": "agg",
    "isl": "1024",
    "osl": "8192",
    "batch_size": "4.0",
    "tp_size": "8.0",
    "attention_dp_size": "1.0",
    "moe_tp_size": "8.0",
    "moe_ep_size": "1.0",
    "silicon_ttft_ms": "100",
    "silicon_tpot_ms": "10",
    "concurrency": "16.0",
}


def read(folder: Path, *changes: dict[str, str]) -> tuple[list[Point], int]:
    rows = [ROW | change for change in changes]
    path = folder / "servings.csv.gz"
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    return read_points(path)


def test_a_row_of_the_public_benchmark(tmp_path: Path) -> None:
    (point,), unknown = read(tmp_path, {})
    assert unknown == 0
    assert point == Point(
        model="Llama-3.1-70B",
        routed=False,
        device="h200-sxm",
        backend="vllm",
        weight_bytes=1.0,
        kv_value_bytes=1.0,
        prefill=Worker(8, 8),
        decode=Worker(8, 8),
        separate=False,
        prompt_tokens=1024,
        output_tokens=8192,
        shortest=0.8,
        step_tokens=8192,
        concurrency=16,
        prefill_share=1.0,
        ttft_s=0.1,
        tpot_s=0.01,
    )


def test_other_lengths_are_all_but_exact_and_a_missing_concurrency_is_the_batch(tmp_path: Path) -> None:
    other = {"isl": "4000", "osl": "1000", "concurrency": "", "precision": ""}
    (vllm, sglang), _ = read(tmp_path, other, other | {"backend": "sglang"})
    assert (vllm.shortest, vllm.concurrency, vllm.weight_bytes, vllm.step_tokens) == (0.97, 4, 2.0, 2048)
    assert (sglang.shortest, sglang.step_tokens) == (1.0, 8192)


def test_experts_over_more_devices_than_attention(tmp_path: Path) -> None:
    qwen = {"model_path": "Qwen/Qwen3-235B-A22B-FP8", "tp_size": "1.0", "attention_dp_size": "", "moe_tp_size": "4.0"}
    (point,), _ = read(tmp_path, qwen)
    assert point.decode == Worker(tensor_parallel=1, expert_devices=4)


def test_a_tensor_size_beyond_a_node_is_a_product(tmp_path: Path) -> None:
    (point,), _ = read(tmp_path, {"tp_size": "64.0", "moe_ep_size": "8.0", "moe_tp_size": "1.0"})
    assert point.decode.tensor_parallel == 8


def test_separate_workers(tmp_path: Path) -> None:
    change = {
        "mode": "disagg",
        "tp_size": "",
        "prefill_tp_size": "1",
        "prefill_num_workers": "6",
        "decode_tp_size": "2",
        "decode_num_workers": "3",
        "decode_batch_size": "128",
        "concurrency": "",
    }
    (point,), _ = read(tmp_path, change)
    assert (point.prefill.tensor_parallel, point.decode.tensor_parallel) == (1, 2)
    assert (point.prefill_share, point.concurrency) == (2.0, 128)
    assert read(tmp_path, change | {"decode_num_workers": ""}) == ([], 1)


def test_repeated_rows_count_once_and_unknown_models_are_counted(tmp_path: Path) -> None:
    again = {"silicon_ttft_ms": "100.00000001"}
    points, undetermined = read(tmp_path, {}, again, {"model_path": "someone/some-model"})
    assert (len(points), undetermined) == (1, 1)


def test_a_split_keeps_configurations_whole(tmp_path: Path) -> None:
    points, _ = read(tmp_path, {})
    many = [
        replace(points[0], prompt_tokens=length, concurrency=c) for length in (128, 256, 512, 1024) for c in (1, 2, 4)
    ]
    fit, report = split(many)
    assert sorted(map(str, fit + report)) == sorted(map(str, many))
    assert not {p.configuration for p in fit} & {p.configuration for p in report}
    assert len(fit) == len(report) == 6
    assert split(many[::-1])[0] == fit[::-1]
    assert {p.configuration for p in split(many, by_serving=True)[0]} == {p.configuration for p in many}


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    for name in ("x.csv", "absent.csv"):
        with pytest.raises(ConfigError, match=name):
            read_points(tmp_path / name)
