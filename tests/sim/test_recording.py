"""Recordings read back: both files, windows, workers that were away, prefixes; and clear words for what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ConfigError
from core.recording import BLOCK_TOKENS, Setting
from sim.cluster import Outage
from sim.recording import read_recording
from tests.support.recordings import BEGIN_S, CONTEXT, later, requests, workers, written

SETTING = Setting(BEGIN_S, "slo-aware", CONTEXT, workers())


def test_the_file_before_it_is_read_too(tmp_path: Path) -> None:
    found = requests(20)
    written(tmp_path / "t.jsonl.1", found[:12])
    path = written(tmp_path / "t.jsonl", reversed(found[12:]))
    recording = read_recording(path)
    assert [r.prompt_tokens for r in recording.requests] == [r.prompt_tokens for r in found]
    assert recording.from_s == pytest.approx(found[0].arrived_s, abs=1e-3)
    assert len(recording.settings) == 2


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", requests(3))
    path.write_text(path.read_text()[:-10])
    assert len(read_recording(path).requests) == 2


def test_a_window_is_the_end_with_the_setting_in_force(tmp_path: Path) -> None:
    more = later(SETTING, 5, *workers(1, 2))
    recording = read_recording(written(tmp_path / "t.jsonl", requests(), SETTING, more, later(SETTING, 20)))
    window = recording.last(recording.until_s - BEGIN_S - 10)
    assert window.settings == (more, later(SETTING, 20))
    assert window.requests[0].arrived_s >= BEGIN_S + 10 - 1e-6
    assert len(window.requests) < len(recording.requests)
    assert recording.last(1e9).requests == recording.requests
    with pytest.raises(ConfigError, match=r"nothing arrived in the last 0\.001 s"):
        recording.last(0.001)


def test_workers_that_were_away_have_outages(tmp_path: Path) -> None:
    both, one = workers(1, 2), (*workers(0, 1), *workers(1, 0))
    found = requests()
    origin = Setting(found[0].arrived_s, "slo-aware", CONTEXT, both)
    recording = read_recording(
        written(tmp_path / "t.jsonl", found, origin, later(origin, 5, *one), later(origin, 9, *both))
    )
    assert [w.worker_id for w in recording.workers()] == ["decode-0", "decode-1", "prefill-0"]
    [outage] = recording.absences("decode-1", place=2)
    assert outage == Outage(2, pytest.approx(5, abs=1e-3), pytest.approx(9, abs=1e-3))  # type: ignore[arg-type]
    assert not list(recording.absences("decode-0", place=1))
    gone = read_recording(written(tmp_path / "g.jsonl", found, origin, later(origin, 5, *one)))
    [outage] = gone.absences("decode-1", place=2)
    assert outage.until_s > gone.until_s - gone.from_s


def test_prefixes_are_those_of_whole_blocks(tmp_path: Path) -> None:
    one, two, three = requests(3)
    found = [
        one._replace(prompt_tokens=3 * BLOCK_TOKENS, hashes=(11, 12, 13)),
        two._replace(prompt_tokens=3 * BLOCK_TOKENS - 1, hashes=(11, 12, 14)),
        three._replace(prompt_tokens=10),
    ]
    workload = read_recording(written(tmp_path / "t.jsonl", found)).workload(("chat", "batch"))
    assert workload.prefix_start.tolist() == [0, 3, 5, 5]
    assert workload.prefix_ids.tolist() == [0, 1, 2, 0, 1]
    assert workload.prefix_block_tokens == BLOCK_TOKENS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no request yet"),
        ("nonsense\n", r":1: .*name a file that router.record wrote"),
        ("[]\n", ":1: not an object"),
        ('{"event": "setting", "format": 7}\n', "format 7, this version reads 1"),
        ('{"timestamp": 1}\n', "does not look like this"),
    ],
)
def test_what_is_no_recording_is_said_to_be_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_recording(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such recording"):
        read_recording(tmp_path / "none.jsonl")
