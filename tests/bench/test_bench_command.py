"""`baton bench` reads its flags, runs, and says what came of it: block, JSON and exit code."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import bench_command
from core.errors import ConfigError
from tests.support.http_mocks import Mock, served_in_thread


@pytest.fixture
def mock() -> Iterator[Mock]:
    with served_in_thread() as found:
        yield found


def options(*words: str, as_json: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench_command.add_flags(parser)
    found = parser.parse_args(words)
    found.as_json = as_json
    return found


LOAD = ("--num-prompts", "30", "--input-len", "16", "--output-len", "4", "--goodput", "ttft:60000", "tpot:60000")


def test_the_block(mock: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_command.run(options("--url", mock.url, *LOAD, "--request-rate", "500")) == 0
    text = capsys.readouterr().out
    for line in (
        "============ Serving Benchmark Result ============",
        "Successful requests:                     30",
        "Total generated tokens:                  120",
        "---------------Time to First Token----------------",
        "Median TTFT (ms):",
        "P99 TPOT (ms):",
    ):
        assert line in text
    assert "Attainment:                              100" in text


def test_json_and_a_saved_file(mock: Mock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    words = ("--url", mock.url, *LOAD, "--save-result", str(file), "--save-detailed", "--label", "x")
    assert bench_command.run(options(*words, as_json=True)) == 0
    value = json.loads(capsys.readouterr().out)
    assert value == json.loads(file.read_text())
    assert (value["label"], value["completed"], len(value["ttfts"])) == ("x", 30, 30)


def test_a_sweep(mock: Mock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"base: {{url: '{mock.url}', num-prompts: 8, output-len: 4}}\n"
        "sweep: {max-concurrency: [1, 4], input-len: [16, 32]}\n"
    )
    assert bench_command.run(options("--sweep", str(file), as_json=True)) == 0
    values = json.loads(capsys.readouterr().out)
    assert [(v["max_concurrency"], v["input_len"]) for v in values] == [(1, 16), (1, 32), (4, 16), (4, 32)]
    file.write_text("base: {no-such-flag: 1}\n")
    with pytest.raises(ConfigError, match=r"sweep\.yaml: there is no flag --no-such-flag"):
        bench_command.run(options("--sweep", str(file)))


def test_the_goodput_search(mock: Mock, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "--url",
        mock.url,
        "--search-goodput",
        "--search-s",
        "0.05",
        "--input-len",
        "16",
        "--output-len",
        "2",
        "--search-most",
        "3",
    )
    targets = ("--goodput", "ttft:60000")
    assert bench_command.run(options(*words, *targets, "--request-rate", "200", as_json=True)) == 0
    found = json.loads(capsys.readouterr().out)["goodput_search"]
    assert found["kept_at"] >= 200
    with pytest.raises(ConfigError, match="needs --goodput or --slo"):
        bench_command.run(options(*words))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--num-prompts", "0"), "--num-prompts"),
        (("--cancel-share", "2"), "--cancel-share"),
        (("--extra-body", "["), "--extra-body"),
        (("--metric-percentiles", "50,101"), "--metric-percentiles"),
        (("--header", "x"), "--header x"),
        (("--slo-class", "x"), "--slo-class x"),
    ],
)
def test_wrong_values_name_their_flag(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        bench_command.run(options("--url", "http://127.0.0.1:9", *words))
