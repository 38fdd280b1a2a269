"""The real engine answers as vLLM does, gives up what is cancelled, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.launch import WorkerProcess
from cluster.reply import Reply
from cluster.session_client import WorkerSession
from core.errors import BatonError, StartFailed
from core.types import LegFacts
from tests.engine.conftest import START_S, RunningEngine, worker_spec

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

END_S = 10.0
# What the transformers library makes of the same prompt: the reference that shares no code with the engine.
REFERENCE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = [int(t) for t in sys.argv[2].split(",")]
out = model.generate(torch.tensor([ids]), max_new_tokens=int(sys.argv[3]), do_sample=False, eos_token_id=None)
print(",".join(str(t) for t in out[0, len(ids):].tolist()))
"""


def sse(data: bytes) -> list[dict[str, object]]:
    """Parse a stream of server-sent events, which must end with [DONE]."""
    events = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


async def rest_of(reply: Reply, parts: list[bytes] | None = None) -> bytes:
    """Read a reply to its end, also into `parts`."""
    parts = [] if parts is None else parts
    while part := await reply.read():
        parts.append(part)
    return b"".join(parts)


def text_of(body: dict[str, object], part: str) -> str:
    choices = body["choices"]
    assert isinstance(choices, list)
    return "".join(c["text"] if part == "text" else c[part].get("content") or "" for c in choices)


async def test_greedy_tokens_are_those_of_the_reference(running: RunningEngine, model: Path) -> None:
    ids = [1, *range(300, 340)]
    command = [sys.executable, "-c", REFERENCE, str(model), ",".join(map(str, ids)), "12"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = [int(t) for t in done.stdout.split(",")]
    body = {"model": "tiny", "prompt": ids, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    status, data = await running.ask("/v1/completions", {**body, "ignore_eos": True})
    assert status == 200
    assert json.loads(data)["choices"][0]["token_ids"] == expected


async def test_a_stream_says_what_the_whole_reply_says(running: RunningEngine) -> None:
    body = {"model": "tiny", "prompt": "To be", "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    status, whole = await running.ask("/v1/completions", body)
    assert status == 200
    reply = running.submit("/v1/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})
    status, headers = await reply.head()
    assert (status, dict(headers)["content-type"]) == (200, "text/event-stream; charset=utf-8")
    events = sse(await rest_of(reply))
    assert 1 < len(events) <= 31  # tokens share an event when the machine is too busy to take each as it is made
    assert "".join(text_of(event, "text") for event in events) == text_of(json.loads(whole), "text")
    assert events[-1]["usage"] == {k: v for k, v in json.loads(whole)["usage"].items() if v is not None}
    assert events[0]["id"] == "cmpl-req-1"


async def test_a_chat_stream_says_what_the_whole_reply_says(running: RunningEngine) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Speak."}], "max_tokens": 20, "temperature": 0}
    status, whole = await running.ask("/v1/chat/completions", body)
    assert status == 200
    status, data = await running.ask("/v1/chat/completions", {**body, "stream": True})
    assert status == 200
    spoken = "".join(text_of(event, "delta") for event in sse(data))
    assert spoken == text_of(json.loads(whole), "message") != ""


async def test_an_adapter_is_served_beside_the_base_model(running: RunningEngine) -> None:
    _, models = await running.ask("/v1/models", None, "GET")
    assert [m["id"] for m in json.loads(models)["data"]] == ["tiny", "poet"]
    texts = []
    for name in ("tiny", "poet"):
        body = {"model": name, "prompt": "To be or not to be", "max_tokens": 12, "temperature": 0}
        status, data = await running.ask("/v1/completions", body)
        assert status == 200
        texts.append(text_of(json.loads(data), "text"))
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "tiny", "prompt": "a", "max_tokens": -1}, 400),
        ({"model": "tiny", "prompt": "a" * 9000, "max_tokens": 2}, 400),
        ({"model": "nobody", "prompt": "a"}, 404),
        ({"model": "tiny", "prompt": "a", "temperature": "hot"}, 400),
        (["no", "object"], 400),
    ],
)
async def test_what_vllm_refuses_is_an_ordinary_reply(running: RunningEngine, body: object, status: int) -> None:
    given, data = await running.ask("/v1/completions", body)
    assert given == status
    error = json.loads(data)["error"]
    assert error["code"] == status
    assert error["message"]


async def test_side_routes_are_vllms_own(running: RunningEngine) -> None:
    _, data = await running.ask("/tokenize", {"model": "tiny", "prompt": "To be"})
    tokens = json.loads(data)["tokens"]
    _, data = await running.ask("/detokenize", {"model": "tiny", "tokens": tokens[1:]})
    assert json.loads(data)["prompt"] == "To be"
    status, data = await running.ask("/metrics", None, "GET")
    assert status == 200
    assert b"vllm:kv_cache_usage_perc" in data
    status, data = await running.ask("/version", None, "GET")
    assert (status, "version" in json.loads(data)) == (200, True)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancelled_request_gives_its_blocks_up(running: RunningEngine, stream: bool) -> None:
    body = {"model": "tiny", "prompt": "To be", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
    reply = running.submit("/v1/completions", body)
    await running.until(lambda state: state.num_running == 1 and state.kv_blocks_used >= 2)
    reply.abort()
    await running.until(lambda state: (state.num_running, state.num_waiting, state.kv_blocks_used) == (0, 0, 0))


async def test_the_state_is_clear_when_all_requests_have_ended(running: RunningEngine) -> None:
    bodies = [{"model": "tiny", "prompt": "a" * n, "max_tokens": 5 + n, "n": 1 + n % 2} for n in range(1, 12)]
    replies = await asyncio.gather(*(running.ask("/v1/completions", body) for body in bodies))
    assert [status for status, _ in replies] == [200] * len(bodies)
    await running.until(lambda state: (state.num_running, state.num_waiting, state.kv_blocks_used) == (0, 0, 0))
    hello = running.session.hello
    assert running.session.state.kv_blocks_total == hello.num_kv_blocks > 0
    assert 0 < running.session.state.step_s < END_S


async def facts_of(running: RunningEngine, body: object) -> LegFacts | None:
    """Return what the engine measured of a completion."""
    reply = running.submit("/v1/completions", body)
    await rest_of(reply)
    return reply.facts


@pytest.mark.parametrize("stream", [True, False])
async def test_a_prompt_is_measured(running: RunningEngine, stream: bool) -> None:
    prompt = [1000 + stream, *range(300, 369)]  # 70 tokens, two whole blocks
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "stream": stream}
    first, again = await facts_of(running, body), await facts_of(running, body)
    assert first is not None
    assert again is not None
    assert (first.prompt_tokens, first.cached_tokens, first.received_tokens) == (70, 0, 0)
    assert (again.prompt_tokens, again.cached_tokens, again.received_tokens) == (70, 64, 0)
    for facts in (first, again):
        assert 0 < facts.queued_s < END_S
        assert 0 < facts.prefill_s < END_S


async def test_a_prompt_that_waits_says_how_long(running: RunningEngine) -> None:
    bodies = [{"model": "tiny", "prompt": [1100 + i, *range(300, 1999)], "max_tokens": 1} for i in range(8)]
    facts = [f for f in await asyncio.gather(*(facts_of(running, body) for body in bodies)) if f is not None]
    assert len(facts) == len(bodies)
    # 13,600 tokens go in steps of 2,048: the last waits for most of them, and every prompt has its time.
    assert max(f.queued_s for f in facts) > 3 * min(f.prefill_s for f in facts)


@pytest.mark.parametrize("extra", [{"n": 2}, {"prompt": ["a", "b"]}, {"max_tokens": -1}], ids=["n", "prompts", "error"])
async def test_what_is_no_single_answer_is_not_measured(running: RunningEngine, extra: dict[str, object]) -> None:
    assert await facts_of(running, {"model": "tiny", "prompt": "To be", "max_tokens": 4, **extra}) is None


async def test_steps_say_what_they_computed(running: RunningEngine) -> None:
    body = {"model": "tiny", "prompt": [1200, *range(300, 500)], "max_tokens": 1, "ignore_eos": True}
    assert (await running.ask("/v1/completions", body))[0] == 200
    await running.until(lambda state: (state.step_prompt_tokens, state.step_seqs) == (201, 1))
    prefill_s = running.session.state.step_s
    assert (await running.ask("/v1/completions", {**body, "max_tokens": 3}))[0] == 200
    await running.until(lambda state: (state.step_prompt_tokens, state.step_seqs) == (0, 1))
    assert 0 < running.session.state.step_s < prefill_s


async def test_a_client_cannot_steer_kv(running: RunningEngine) -> None:
    steering = {"kv_transfer_params": {"do_remote_prefill": True, "transfer_id": "x"}}
    body = {"model": "tiny", "prompt": "To be", "max_tokens": 4, "temperature": 0}
    plain = await running.ask("/v1/completions", body)
    steered = await running.ask("/v1/completions", {**body, **steering, "vllm_xargs": {"kv_transfer_params": "x"}})
    assert (steered[0], text_of(json.loads(steered[1]), "text")) == (200, text_of(json.loads(plain[1]), "text"))


class TestEndings:
    """Engines that are killed, each its own."""

    @pytest.fixture
    async def doomed(self, model: Path, tmp_path: Path) -> AsyncIterator[WorkerProcess]:
        process = await WorkerProcess.start(worker_spec(tmp_path, model, "doomed"), log_path=tmp_path / "log")
        yield process
        process.kill()
        await process.exited()

    @pytest.mark.asyncio(loop_scope="function")
    async def test_killing_the_front_ends_the_core(self, doomed: WorkerProcess) -> None:
        await doomed.ready(START_S)
        front, core = doomed.tree_pids()
        assert front == doomed.pid
        pidfd = os.pidfd_open(core)
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, gone.set)
        os.kill(front, signal.SIGKILL)
        async with asyncio.timeout(2):
            await gone.wait()
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        assert await doomed.exited() == -signal.SIGKILL

    @pytest.mark.asyncio(loop_scope="function")
    async def test_killing_the_core_fails_running_calls_and_the_worker(self, doomed: WorkerProcess) -> None:
        session = WorkerSession(await doomed.ready(START_S), token="", on_change=lambda: None)
        await session.connect(10)
        engine = RunningEngine(doomed, session, asyncio.Event())
        body = {"model": "tiny", "prompt": "To be", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        whole = engine.submit("/v1/completions", {**body, "stream": False})
        reply = engine.submit("/v1/completions", body)
        await reply.read()
        os.kill(doomed.tree_pids()[1], signal.SIGKILL)
        heard: list[bytes] = []
        with pytest.raises(BatonError) as caught:
            await rest_of(reply, heard)
        assert caught.value.retriable
        assert b"error" not in b"".join(heard)
        with pytest.raises(BatonError) as caught:
            await whole.head()
        assert caught.value.retriable
        async with asyncio.timeout(END_S):
            assert await doomed.exited() == 3
        assert "EngineCore ended" in doomed.failure
        log = "\n".join(doomed.last_log_lines(5000))
        assert "failed after its reply" not in log  # vLLM's error handler found what it looks for
        with contextlib.suppress(BatonError):
            await session.close()


@pytest.mark.asyncio(loop_scope="function")
async def test_flags_vllm_refuses_are_named(model: Path, tmp_path: Path) -> None:
    spec = worker_spec(tmp_path, model, "wrong")
    spec = replace(spec, engine=replace(spec.engine, extra_args=("--no-such-flag",)))
    process = await WorkerProcess.start(spec, log_path=tmp_path / "log")
    with pytest.raises(StartFailed, match=r"config_error: vLLM refuses the engine's flags.*--no-such-flag"):
        await process.ready(START_S)
    assert await process.exited() == 1
