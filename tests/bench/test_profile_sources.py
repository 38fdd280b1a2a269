"""What the columns of the public measurements mean, on small tables of our own."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bench.profile_sources import layer_tables, read_rows, splitwise_samples, transfer_points
from core.errors import ConfigError
from core.latency.fit import Sample
from core.latency.step import Step

_LAYERS = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")


def test_a_splitwise_row_is_a_prefill_and_a_decode_step(tmp_path: Path) -> None:
    file = tmp_path / "perf_model.csv"
    file.write_text(
        "model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,tensor_parallel\n"
        "m,a100,512,2,128,250.0,45.0,4\nm,a100,512,2,128,9.0,9.0,8\nother,a100,1,1,1,9.0,9.0,4\n"
    )
    assert splitwise_samples(file, model="m", hardware="a100", tensor_parallel=4) == [
        Sample(Step(1024, 2, 2 * 512 * 256.0), pytest.approx(0.25)),
        Sample(Step(decode_seqs=2, context_tokens=2 * (512 + 64)), pytest.approx(0.045)),
    ]


def _layer_files(folder: Path) -> tuple[Path, Path, Path]:
    attention, dense, heads = folder / "attention.csv.gz", folder / "dense.csv", folder / "heads.csv"
    rows = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n100,50,0,0,7\n0,0,4,1000,9\n10,0,4,9000,20\n"
    attention.write_bytes(gzip.compress(rows.encode()))
    lines = [f"{name},{n},{1 + n / 100}" for name in (*_LAYERS, "embedding") for n in (0, 100)]
    dense.write_text("layer,tokens,time_us\n" + "\n".join(lines) + "\n")
    heads.write_text("layer,sequences,time_us\nlm_head,1,100\nlm_head,5,140\n")
    return attention, dense, heads


def test_layers_count_as_often_as_a_decoder_has_them(tmp_path: Path) -> None:
    tables = layer_tables(*_layer_files(tmp_path), layers=10)
    prefill, decode = tables.samples(overhead_s=1e-3, longest_context=4096)
    # Eight kernels in each of ten layers and one embedding, 2 us each at 100 tokens and 1.04 us at 4.
    assert prefill == Sample(Step(100, 1, 100 * 100.0), pytest.approx(1e-3 + (81 * 2.0 + 100 + 10 * 7) * 1e-6))
    assert decode == Sample(Step(0, 0, 0.0, 4, 4000), pytest.approx(1e-3 + (81 * 1.04 + 130 + 10 * 9) * 1e-6))


def test_mixed_rows_are_mixed_steps(tmp_path: Path) -> None:
    tables = layer_tables(*_layer_files(tmp_path), layers=10)
    mixed = tables.samples(overhead_s=0.0, longest_context=10_000)[2]
    # 14 tokens pass the layers; five sequences get a token.
    assert mixed == Sample(Step(10, 1, 50.0, 4, 36_000), pytest.approx((81 * 1.14 + 140 + 10 * 20) * 1e-6))


def test_links_are_told_apart_by_devices_per_node(tmp_path: Path) -> None:
    file = tmp_path / "send_recv.csv"
    file.write_text("bytes,num_workers,devices_per_node,send_recv_ms\n2048,2,1,0.024\n2048,2,2,0.008\n")
    assert transfer_points(file, devices_per_node=2) == [(2048.0, pytest.approx(8e-6))]


def test_a_missing_file_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv: cannot be read"):
        list(read_rows(tmp_path / "none.csv", ("a",)))
    file = tmp_path / "some.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"some\.csv: has no column c"):
        list(read_rows(file, ("a", "c")))
