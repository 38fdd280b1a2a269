"""`baton compare` says which of two servers is slower, and writes it for people, programs and a browser."""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path

import pytest

from bench import compare_command
from bench.serving.target import Target, one_pool
from core.errors import ConfigError
from tests.support.html_pages import check
from tests.support.http_mocks import Heard, served_in_thread, stream_tokens


async def slow_tokens(heard: Heard, writer: asyncio.StreamWriter) -> None:
    if heard.body.get("stream"):
        await asyncio.sleep(0.15)
    await stream_tokens(heard, writer)


def options(*words: str, as_json: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    compare_command.add_flags(parser)
    found = parser.parse_args(words)
    found.as_json = as_json
    return found


def test_the_slower_of_two_servers_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    load = ("--num-prompts", "20", "--input-len", "8", "--output-len", "3", "--goodput", "ttft:100", "--segments", "2")
    with served_in_thread() as fast, served_in_thread(slow_tokens) as slow:
        words = (fast.url, slow.url, *load, "--names", "fast", "slow", "--html", str(page))
        assert compare_command.run(options(*words, "--rates", "100", "200", "--rate-s", "0.2", as_json=True)) == 0
        found = json.loads(capsys.readouterr().out)
        assert compare_command.run(options(*words, "--max-concurrency", "4")) == 0
    lines = capsys.readouterr().out.splitlines()
    metrics = {m["metric"]: m for m in found["rates"][0]["metrics"]}
    assert [p["request_rate"] for p in found["rates"]] == [100, 200]
    assert (metrics["TTFT median"]["second_is"], metrics["success"]["second_is"]) == ("worse", "no difference seen")
    assert metrics["TTFT median"]["ratio_interval"][0] > 1.0
    assert any(line.startswith("TTFT median, ms") and line.endswith("worse") for line in lines)
    assert lines[:2] == ["A = fast", "B = slow"]
    check(page.read_text())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("http://a",), "name two servers"),
        (("--config", "x.yaml"), "--against"),
        (("http://a", "http://b", "--segments", "1"), "--segments"),
        (("http://a", "http://b", "--html", "/no/such/folder/x"), "--html"),
    ],
)
def test_what_cannot_be_compared_is_refused(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        compare_command.run(options(*words))


def test_sides_may_be_configurations(tmp_path: Path) -> None:
    a, b = compare_command.sides_from(options("--config", "x.yaml", "--set", "a=1", "--set-against", "b=2"))
    assert (a, b) == (
        Target("x.yaml, a=1", config=Path("x.yaml"), overrides=("a=1",)),
        Target("x.yaml, b=2", config=Path("x.yaml"), overrides=("a=1", "b=2")),
    )
    a, b = compare_command.sides_from(options("--config", "x.yaml", "--against", "x.yaml"))
    assert (a.name, b.name) == ("x.yaml (A)", "x.yaml (B)")
    _, b = compare_command.sides_from(options("--config", "x.yaml", "--against", "one-pool", "--names", "p", "q"))
    assert (b.name, b.is_one_pool, b.config) == ("q", True, Path("x.yaml"))


def test_one_pool_has_the_devices_of_both_pools(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "model: {path: some/model, name: n, max_model_len: 2048}\n"
        "pools:\n  prefill: {replicas: 1, cpus: 2, kv_cache_mb: 100}\n"
        "  decode: {replicas: 3, cpus: 1, kv_cache_mb: 200, max_num_seqs: 32}\n"
    )
    found = one_pool(Target("x", config=file, is_one_pool=True))
    assert (found.threads, found.kv_mb, found.max_num_seqs, found.data_parallel) == (5, 700, 64, 1)
    assert {"--max-model-len", "2048", "--served-model-name", "n", "--enforce-eager"} <= set(found.flags())
    gpus = one_pool(Target("x", config=file, overrides=("pools.decode.gpus=1",), is_one_pool=True))
    assert (gpus.kv_mb, gpus.data_parallel) == (None, 4)
    assert "--data-parallel-size" in gpus.flags()
    with pytest.raises(ConfigError, match="pools: auto"):
        one_pool(Target("x", config=file, overrides=("pools=auto",), is_one_pool=True))
