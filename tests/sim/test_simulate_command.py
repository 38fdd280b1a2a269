"""`baton simulate` as the command line runs it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from core.command_flags import add_json
from core.errors import ConfigError, NotRunning
from sim import simulate_command
from tests.support.recordings import as_simulated, requests, written


def simulate(*words: str, run_dir: Path | None = None) -> int:
    parser = argparse.ArgumentParser()
    simulate_command.add_flags(parser)
    add_json(parser)
    parser.set_defaults(run_dir=lambda: run_dir)
    return simulate_command.run(parser.parse_args(words))


def test_the_answer_stands_beside_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = as_simulated(tmp_path / "t.jsonl", requests(rate=16.0))
    assert simulate("--from", str(path), "--set", "prefill=2,decode=2") == 0
    text = capsys.readouterr().out
    assert "240 requests" in text
    assert "on decode-0, prefill-0, policy slo-aware" in text
    [head] = [line for line in text.splitlines() if "what if" in line]
    assert head.split() == ["happened", "simulated", "what", "if"]
    [row] = [line for line in text.splitlines() if line.startswith("  devices  ")]
    assert row.split()[1:] == ["2", "2", "4"]
    assert "replay error: 0.0 points" in text


def test_more_workers_keep_more_and_cost_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = as_simulated(tmp_path / "traffic.jsonl", requests(rate=16.0))
    assert simulate("--json", "--last", "1h", "--set", "prefill=2", run_dir=tmp_path) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["requests"] == 240
    assert told["what_if"]["attainment"] > told["happened"]["attainment"] == told["simulated"]["attainment"]
    assert told["what_if"]["device_hours"] == pytest.approx(1.5 * told["happened"]["device_hours"])
    assert told["replay_error"]["mean"] == 0.0
    assert path.is_file()


def test_without_changes_the_past_is_simulated_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [r._replace(is_guessed=i == 0) for i, r in enumerate(requests(80))]
    assert simulate("--from", str(written(tmp_path / "t.jsonl", found))) == 0
    text = capsys.readouterr().out
    assert "what if" not in text
    assert "1 of them were not answered" in text


@pytest.mark.parametrize("last", ["30", "m", "0m", "5 weeks"])
def test_a_wrong_time_is_told(tmp_path: Path, last: str) -> None:
    path = written(tmp_path / "t.jsonl", requests(10))
    with pytest.raises(ConfigError, match=r"--last .*: write a number and a unit"):
        simulate("--from", str(path), "--last", last)


def test_nothing_that_runs_and_nothing_recorded_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="name a recording with --from FILE"):
        simulate()
    with pytest.raises(ConfigError, match=r"there is no recording; let router\.record be"):
        simulate(run_dir=tmp_path)
