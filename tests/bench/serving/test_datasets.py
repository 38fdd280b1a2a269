"""Datasets of every form give the lengths, texts, classes and times that they hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.serving.datasets import DatasetSpec, Item, make_source
from bench.serving.prompt_text import Vocabulary
from core.errors import ConfigError

WORDS = Vocabulary(("the", "sea", "was", "calm", "and", "a", "boat"))


def write(folder: Path, *rows: object, name: str = "data.jsonl") -> Path:
    file = folder / name
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def test_random_lengths_lie_in_their_range_and_prompts_have_them() -> None:
    source = make_source(DatasetSpec(num_requests=200, input_tokens=100, output_tokens=20, range_ratio=0.5), WORDS)
    items = [source.item(i) for i in range(200)]
    prompts, outputs = [i.prompt_tokens for i in items], [i.output_tokens for i in items]
    assert (min(prompts), max(prompts)) == (pytest.approx(50, abs=5), pytest.approx(150, abs=5))
    assert (min(outputs), max(outputs)) == (pytest.approx(10, abs=2), pytest.approx(30, abs=2))
    assert all(len(str(i.prompt).split()) == i.prompt_tokens for i in items)
    assert source.item(7) == items[7]


def test_other_seeds_make_other_prompts() -> None:
    one, other = (make_source(DatasetSpec(num_requests=3, seed=seed), WORDS).item(0).prompt for seed in (1, 2))
    assert str(one).split()[:6] != str(other).split()[:6]


def test_a_prefix_is_shared_and_comes_on_top() -> None:
    spec = DatasetSpec(num_requests=2, input_tokens=10, prefix_tokens=32)
    one, other = (str(make_source(spec, WORDS).item(i).prompt).split() for i in range(2))
    assert (len(one), one[:32] == other[:32], one[32:] == other[32:]) == (42, True, False)


def test_mooncake_traces_share_what_their_hashes_share(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 3000, "input_length": 600, "output_length": 6, "hash_ids": [1, 9]},
    )
    source = make_source(DatasetSpec("trace", file), WORDS)
    one, other = (source.item(i) for i in range(2))
    assert (len(str(one.prompt).split()), len(str(other.prompt).split())) == (1100, 600)
    assert str(one.prompt).split()[:512] == str(other.prompt).split()[:512]
    assert str(one.prompt).split()[512:520] != str(other.prompt).split()[512:520]
    assert source.arrived_s is not None
    assert source.arrived_s.tolist() == [0.0, 3.0]


def test_azure_traces_and_class_shares(tmp_path: Path) -> None:
    rows = [f"2023-11-16 18:15:{i % 60:02d}.0,{10 + i},5" for i in range(60)]
    file = write(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens", *rows, name="azure.csv")
    spec = DatasetSpec("trace", file, class_shares=(("a", 3.0), ("b", 1.0)), num_requests=50)
    source = make_source(spec, WORDS)
    names = [source.item(i).slo_class for i in range(len(source))]
    assert len(source) == 50
    assert 25 <= names.count("a") <= 47
    assert set(names) == {"a", "b"}


def test_own_texts(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    file = write(
        tmp_path,
        {"prompt": "one two", "output_tokens": 3, "prompt_tokens": 2, "slo_class": "a", "arrived_s": 1},
        {"messages": messages, "arrived_s": 2.5},
    )
    source = make_source(DatasetSpec("custom", file), WORDS)
    assert source.item(0) == Item("one two", 2, 3, "a")
    assert (source.item(1).prompt, source.item(1).output_tokens) == (messages, 256)
    assert source.arrived_s is not None
    assert np.allclose(source.arrived_s, [0.0, 1.5])


def test_sharegpt_takes_the_first_turn_and_leaves_out_what_is_too_short(tmp_path: Path) -> None:
    long = {"conversations": [{"from": "human", "value": "q" * 80}, {"from": "gpt", "value": "a" * 40}]}
    short = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    file = write(tmp_path, json.dumps([long, short, {"conversations": []}]), name="share.json")
    source = make_source(DatasetSpec("sharegpt", file), WORDS)
    assert (len(source), source.item(0)) == (1, Item("q" * 80, 20, 10))
    assert "2 of 3" in source.notes[0]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (DatasetSpec("nothing"), "choose one of random, trace"),
        (DatasetSpec("custom"), "--dataset-path"),
        (DatasetSpec("custom", Path("no-such-file")), "cannot be read"),
        (DatasetSpec(range_ratio=1.0), "--random-range-ratio"),
    ],
)
def test_what_is_no_dataset_is_refused(spec: DatasetSpec, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_source(spec, WORDS)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "no JSON"),
        ([1], "no JSON object"),
        ({"text": "x"}, ":1: has neither prompt"),
        ({"prompt": "x", "output_tokens": 0}, ":1: output_tokens is 0"),
        ({"prompt": "x", "slo_class": "a\r\nx-evil: 1"}, ":1: slo_class is"),
    ],
)
def test_what_a_line_lacks_is_named(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_source(DatasetSpec("custom", write(tmp_path, row)), WORDS)
