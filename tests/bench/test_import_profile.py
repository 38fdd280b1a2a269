"""The command that makes the shipped profiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.import_profile import kv_capacity_tokens, main


def test_the_kv_cache_gets_what_weights_leave() -> None:
    # Llama-3.1-8B in bf16 on 80 GiB: 0.9 of the memory less 2 GB less 16.06 GB, at 128 KiB for each token.
    tokens = kv_capacity_tokens(memory_gib=80, devices=1, parameters=8.03e9, kv_token_bytes=131_072)
    assert tokens == int((80 * 2**30 * 0.9 - 2e9 - 16.06e9) // 131_072)
    assert kv_capacity_tokens(memory_gib=80, devices=2, parameters=8.03e9, kv_token_bytes=131_072) > 2 * tokens


def test_missing_data_is_an_error_that_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "distserve-a100-opt.json: cannot be read" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))
