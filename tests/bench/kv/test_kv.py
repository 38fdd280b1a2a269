from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.kv.__main__ import main
from bench.kv.systems import MEMCPY, TCP2


def test_a_run_prints_tables_and_keeps_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.kv.systems.is_installed", lambda: False)  # iperf3, on some machines
    file = tmp_path / "run.json"
    words = [
        "sizes",
        "--sizes",
        "32",
        "--rounds",
        "1",
        "--repeats",
        "1",
        "--transports",
        "--peers",
        "--json",
        str(file),
    ]
    assert main(words) == 0
    record = json.loads(file.read_text())
    assert [(each["system"], each["tokens"]) for each in record["taken"]] == [(MEMCPY, 32), (TCP2, 32)]
    assert record["notes"] == []
    assert f"| {MEMCPY} |" in capsys.readouterr().out


def test_tokens_must_fill_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--sizes", "65"])
    assert "multiples of 16" in capsys.readouterr().err
