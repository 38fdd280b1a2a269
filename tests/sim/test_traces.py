"""Reading a trace: plain or packed, checked, cut, sorted, with a note for whatever was done."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConfigError
from sim.traces import read_trace

HEADER = "arrived_s,prompt_tokens,output_tokens\n"


def written(folder: Path, text: str, name: str = "t.csv") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_plain_and_packed_files_read_alike(tmp_path: Path) -> None:
    text = HEADER + "5,10,2\n7.5,20,3\n"
    packed = tmp_path / "t.bin"
    packed.write_bytes(gzip.compress(text.encode()))
    for file in (written(tmp_path, text), packed):
        trace = read_trace(file)
        assert trace.workload.arrived_s.tolist() == [0.0, 2.5]
        assert trace.workload.prompt_tokens.tolist() == [10, 20]
        assert (trace.has_arrivals, trace.has_classes, trace.notes) == (True, False, ())


def test_rows_out_of_order_are_sorted_and_said(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, HEADER + "3,1,1\n1,2,1\n2,3,1\n"))
    assert trace.workload.prompt_tokens.tolist() == [2, 3, 1]
    assert trace.notes == ("1 requests stood after later ones; all are sorted by arrival",)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1,0,5", "t.csv:3: the prompt's length is 0; it must be a whole number of tokens from 1 to 100,000,000"),
        ("1,-4,5", "t.csv:3: the prompt's length is -4"),
        ("1,5,0", "t.csv:3: the output's length is 0"),
        ("1,5,2.5", "t.csv:3: the output's length is 2.5"),
        ("1,5,nan", "t.csv:3: the output's length is nan"),
        ("1,1e12,5", "t.csv:3: the prompt's length is 1e+12"),
        ("-1,5,5", "t.csv:3: the arrival time is -1; it must be zero or more seconds"),
        ("inf,5,5", "t.csv:3: the arrival time is inf"),
    ],
)
def test_absurd_values_are_refused_with_their_line(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(written(tmp_path, f"{HEADER}0,5,5\n{row}\n2,5,5\n{row}\n"))
    assert words in str(caught.value)
    assert str(caught.value).endswith("(2 such requests); correct or remove them")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEADER, "holds no request"),
        (HEADER + "4,1,1\n4,2,2\n", "all 2 requests arrive at the same time"),
        (HEADER + "4,100,1\n5,200,2\n", "no request fits the model's 50 tokens"),
    ],
)
def test_traces_that_say_nothing_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_trace(written(tmp_path, text), max_total_tokens=50)


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "x.gz"
    damaged.write_bytes(gzip.compress(b"prompt_tokens" * 100)[:-20])
    binary = tmp_path / "x.parquet"
    binary.write_bytes(b"PAR1\xff\xfe\x00")
    for file, words in (
        (tmp_path / "none.csv", "there is no such trace file"),
        (tmp_path, "is a folder"),
        (damaged, "the gzip file is damaged"),
        (binary, "is no text"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_trace(file)


def test_requests_beyond_the_model_are_left_out_and_counted(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, HEADER + "0,90,20\n1,50,50\n4,10,10\n"), max_total_tokens=100)
    assert trace.workload.prompt_tokens.tolist() == [50, 10]
    assert trace.workload.arrived_s.tolist() == [0.0, 3.0]
    assert trace.notes[0].startswith("1 of 3 requests (33 %) exceed the model's 100 tokens")


def test_the_first_requests_are_taken_when_asked(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, HEADER + "0,1,1\n1,2,2\n2,3,3\n"), max_requests=2)
    assert trace.workload.prompt_tokens.tolist() == [1, 2]
    assert trace.notes == ("the first 2 of 3 requests are used",)


def test_lengths_alone_get_the_arrivals_of_the_seed(tmp_path: Path) -> None:
    file = written(tmp_path, "prompt_tokens,output_tokens\n" + "5,6\n" * 4000)
    first, again, other = (read_trace(file, seed=seed).workload for seed in (1, 1, 2))
    assert first.arrived_s.tolist() == again.arrived_s.tolist()
    assert first.arrived_s.tolist() != other.arrived_s.tolist()
    assert first.rate == pytest.approx(1.0, rel=0.05)
    assert not read_trace(file).has_arrivals


def test_prefix_blocks_are_renumbered_and_cut_to_whole_blocks(tmp_path: Path) -> None:
    rows = (
        '{"timestamp": 2000, "input_length": 1500, "output_length": 5, "hash_ids": [90, 91, 92]}\n'
        '{"timestamp": 1000, "input_length": 1024, "output_length": 5, "hash_ids": [90, 70]}\n'
    )
    workload = read_trace(written(tmp_path, rows)).workload
    assert workload.prompt_tokens.tolist() == [1024, 1500]
    assert workload.prefix_start.tolist() == [0, 2, 4]
    assert workload.prefix_ids.tolist() == [0, 1, 0, 2]


def test_hashes_of_any_size_name_prefixes(tmp_path: Path) -> None:
    line = '{"timestamp": %d, "input_length": 1100, "output_length": 5, "hash_ids": [%d, %d]}\n'
    text = line % (0, 10**30, 7) + line % (1000, 10**30, -(2**70))
    assert read_trace(written(tmp_path, text)).workload.prefix_ids.tolist() == [0, 1, 0, 2]


def test_an_endless_file_is_refused_before_memory_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.traces._MAX_BYTES", 1000)
    packed = tmp_path / "t.gz"
    packed.write_bytes(gzip.compress(b"0" * 1001))
    for file in (Path("/dev/zero"), packed):
        with pytest.raises(ConfigError, match="a part of it is trace enough"):
            read_trace(file)


def test_classes_are_read_by_name(tmp_path: Path) -> None:
    rows = "arrived_s,prompt_tokens,output_tokens,slo_class\n2,1,1,batch\n1,2,1,\n0,3,1,chat\n"
    trace = read_trace(written(tmp_path, rows), class_names=("chat", "batch"), default_class=1)
    assert trace.has_classes
    assert trace.workload.slo_class.tolist() == [0, 1, 1]
    with pytest.raises(ConfigError, match=r"t.csv:2: slo_class 'batch' is none of chat"):
        read_trace(written(tmp_path, rows), class_names=("chat",))


def test_a_hundred_thousand_rows_keep_every_figure(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    prompt, output = rng.integers(1, 9000, (2, 100_000))
    rows = "".join(f"{i / 8},{p},{o}\n" for i, (p, o) in enumerate(zip(prompt, output, strict=True)))
    workload = read_trace(written(tmp_path, HEADER + rows)).workload
    assert (workload.prompt_tokens == prompt).all()
    assert (workload.output_tokens == output).all()
    assert workload.rate == pytest.approx(8.0)
