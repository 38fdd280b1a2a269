"""A sweep is every combination, in flags that the command line would take."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.serving.sweep import read_sweep
from core.errors import ConfigError


def test_every_combination_of_every_run(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "base: {url: 'http://a', goodput: [ttft:400, tpot:40], ignore-eos: false}\n"
        "sweep: {max-concurrency: [1, 8], input-len: 64}\n"
        "runs:\n  - {label: x}\n  - {label: y, set: [a=1, b=2]}\n"
    )
    runs = read_sweep(file)
    assert [tuple(run.varied.items())[:1] for run in runs] == [(("label", "x"),)] * 2 + [(("label", "y"),)] * 2
    assert runs[0].words == (
        *("--url", "http://a", "--goodput", "ttft:400", "tpot:40", "--no-ignore-eos"),
        *("--label", "x", "--max-concurrency", "1", "--input-len", "64"),
    )
    assert runs[3].words[8:] == ("--set", "a=1", "--set", "b=2", "--max-concurrency", "8", "--input-len", "64")


@pytest.mark.parametrize("text", ["[1]", "bas: {}", "base: [1]", "base: {1: 2}", "a: ["])
def test_what_is_no_sweep_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"sweep\.yaml"):
        read_sweep(file)
