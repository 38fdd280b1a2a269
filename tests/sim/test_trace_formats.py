"""Each format is told by content and read with its own names and units."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.recording import BLOCK_TOKENS
from sim.trace_formats import parse
from tests.support.recordings import requests, written

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
MOONCAKE = (
    '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]}\n'
    '{"timestamp": 30535, "input_length": 1300, "output_length": 8, "hash_ids": [46, 49]}\n'
)


def test_csv_with_our_columns_in_any_order() -> None:
    columns = parse("output_tokens,slo_class,prompt_tokens,arrived_s\n3,chat,10,0.5\n\n4, batch ,20,1e0\n", file="t")
    assert (columns.lines, columns.prompt_tokens, columns.output_tokens) == ([2, 4], [10, 20], [3, 4])
    assert (columns.arrived_s, columns.slo_class) == ([0.5, 1.0], ["chat", "batch"])


def test_the_public_azure_columns() -> None:
    columns = parse(AZURE, file="t")
    assert columns.arrived_s is not None
    assert columns.arrived_s[1] - columns.arrived_s[0] == pytest.approx(4.314579, abs=2e-6)
    assert (columns.prompt_tokens, columns.output_tokens) == ([374, 396], [44, 109])


def test_azure_times_with_a_zone() -> None:
    rows = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.5+00:00,1,1\n2024-05-10 02:00:01+02:00,1,1\n"
    times = parse(rows, file="t").arrived_s
    assert times is not None
    assert times[1] - times[0] == pytest.approx(0.5)


def test_lengths_alone_have_no_arrivals() -> None:
    assert parse("prompt_tokens,output_tokens\n1637,214\n", file="t").arrived_s is None


def test_mooncake_times_are_milliseconds_and_hashes_are_prefixes() -> None:
    columns = parse(MOONCAKE, file="t")
    assert (columns.arrived_s, columns.prefix_ids) == ([27.482, 30.535], [[46, 47, 48], [46, 49]])
    assert (columns.prompt_tokens, columns.output_tokens) == ([6955, 1300], [52, 8])
    assert columns.prefix_block_tokens == 512


def vllm_result(**changes: object) -> str:
    result: dict[str, object] = {
        "request_throughput": 1.2,
        "input_lens": [100, 200, 300],
        "output_lens": [10, 0, 30],
        "start_times": [5000.25, 5001.0, 5002.75],
        "ttfts": [0.1, 0.0, 0.3],
    }
    return json.dumps({k: v for k, v in (result | changes).items() if v is not None}, indent=2)


def test_a_vllm_benchmark_without_its_failed_requests() -> None:
    columns = parse(vllm_result(), file="t")
    assert (columns.prompt_tokens, columns.output_tokens) == ([100, 300], [10, 30])
    assert (columns.arrived_s, columns.lines) == ([5000.25, 5002.75], [1, 3])
    assert columns.notes == ("1 requests that failed in the benchmark were left out",)


def test_a_vllm_benchmark_of_a_version_without_start_times() -> None:
    assert parse(vllm_result(start_times=None), file="t").arrived_s is None


def test_the_custom_dataset_counts_characters_only_where_it_must() -> None:
    rows = (
        '{"prompt": "' + "x" * 41 + '", "output_tokens": 7}\n{"prompt": "", "prompt_tokens": 9, "output_tokens": 8}\n'
    )
    columns = parse(rows, file="t")
    assert (columns.prompt_tokens, columns.output_tokens, columns.arrived_s) == ([11, 9], [7, 8], None)
    assert columns.notes[0].startswith("1 prompts have text but no prompt_tokens")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "t: is empty; a trace is CSV"),
        ("a,b\n1,2\n", "t:1: the header 'a,b' names no known columns"),
        ("prompt_tokens,output_tokens\n1,2\n3\n", "t:3: has 1 values where the header names 2"),
        ("prompt_tokens,output_tokens\n1,2\nx,2\n", "t:3: prompt_tokens is 'x'; write a number"),
        (AZURE + "yesterday,1,2\n", "t:4: TIMESTAMP is 'yesterday'"),
        ('{"timestamp": 1, "input_length": 3}\n', "t:1: output_length is missing"),
        ('{"input_length": 3, "output_length": true}', "t:1: output_length is 'True'"),
        (MOONCAKE + "{broken\n", "t:3: is no JSON"),
        ('{"input_length": 3, "output_length": 2, "hash_ids": "a"}', "t:1: hash_ids is no list"),
        ('{"what": 1}', "t:1: this JSON is no trace"),
        ("[1, 2]", "t:1: is no JSON object"),
        ('{"prompt": "a"}', "t:1: output_tokens is missing"),
        ('{"prompt": ["a"], "output_tokens": 1}', "t:1: prompt is no text"),
        (vllm_result(input_lens=None), "--save-result --save-detailed"),
        (vllm_result(input_lens=[1]), "input_lens 1, output_lens 3"),
        (vllm_result(input_lens=["a", 1, 2]), "input_lens is no list of numbers"),
        (vllm_result().replace("\n", "") * 1 + "\n" + vllm_result().replace("\n", ""), "holds 2 benchmark results"),
        ("[" * 100_000, "t: is nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, file="t")
    assert words in str(caught.value)


def test_numbers_of_hundreds_of_digits_are_taken_for_infinity() -> None:
    huge = "1" + "0" * 400
    columns = parse(f'{{"timestamp": 0, "input_length": {huge}, "output_length": 1}}', file="t")
    assert columns.prompt_tokens == [math.inf]
    columns = parse(f'{{"input_lens": [{huge}], "output_lens": [1]}}', file="t")
    assert columns.prompt_tokens == [math.inf]


def test_a_recording_is_a_trace_with_shorter_blocks(tmp_path: Path) -> None:
    found = [r._replace(hashes=(7, 8)) for r in requests(4)]
    columns = parse(written(tmp_path / "t.jsonl", found).read_text(), file="t.jsonl")
    assert (columns.format, columns.prefix_block_tokens) == ("recorded traffic", BLOCK_TOKENS)
    assert list(columns.lines) == [2, 3, 4, 5]
    assert columns.prompt_tokens == [r.prompt_tokens for r in found]
    assert columns.slo_class == ["chat", "chat", "chat", "batch"]
    assert columns.prefix_ids == [[7, 8]] * 4
