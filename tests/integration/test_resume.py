"""Streams whose decode worker dies in the middle: clients get what one pool gives, not a token more or less.

One kill serves many streams, of every kind that resumes, for a worker that dies takes half a minute to come back.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import httpx
import pytest

from core.types import Role
from tests.integration.test_parity import CHAT, COMPLETIONS, completion
from tests.support.openai_http import Json, Streamed, assert_same, post, stream, take
from tests.support.stack import Stack

pytestmark = pytest.mark.engine

LONG = {"max_tokens": 400, "ignore_eos": True}  # streams that began first still run when the last has begun
USAGE = {"stream_options": {"include_usage": True}}
EVENTS_BEFORE_THE_FAULT = 20
EVENTS_BEFORE_A_TOOL = 1  # a call may come in few pieces
MOST_TRIES = 5
SHORT = ("stop", "tool-named")  # begun last, for they end by themselves
NOTICED_S = 2.5  # a frozen worker: after 1 s of silence, and then a prompt is computed


@pytest.fixture(autouse=True)
def nothing_held(stack: Stack) -> Iterator[None]:
    yield
    stack.revive()
    stack.assert_nothing_held()


class Reader:
    """Reads one stream in a thread of its own, and keeps the ids and times that its events carry."""

    def __init__(self, url: str, path: str, body: Json) -> None:
        self.streamed = Streamed()
        self.ids: set[tuple[str, int]] = set()
        self.arrivals_s: list[float] = []
        self.is_going = threading.Event()  # some events have come
        self._url, self._path, self._body = url, path, body
        self._events_before = EVENTS_BEFORE_A_TOOL if "tools" in body else EVENTS_BEFORE_THE_FAULT

    def read(self) -> Streamed:
        with (
            httpx.Client(timeout=120) as client,
            client.stream("POST", self._url + self._path, json={**self._body, "stream": True}) as response,
        ):
            assert response.status_code == 200
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self._take(line.removeprefix("data: "))
        return self.streamed

    def _take(self, data: str) -> None:
        take(self.streamed, data)
        self.arrivals_s.append(os.times().elapsed)
        if data != "[DONE]" and "id" in (event := json.loads(data)):
            self.ids.add((event["id"], event["created"]))
        if self.streamed.num_events >= self._events_before:
            self.is_going.set()

    @property
    def longest_gap_s(self) -> float:
        return max(later - earlier for earlier, later in pairwise(self.arrivals_s))


def late_text(stack: Stack, body: Json) -> str:
    """Find a text that one pool's answer holds for the first time after about 150 tokens."""
    text = post(stack.one_pool_url, COMPLETIONS, {**body, "max_tokens": 200})[1]["choices"][0]["text"]
    start = next(at for at in range(len(text) * 3 // 4, len(text) - 8) if text.find(text[at : at + 8]) == at)
    return str(text[start : start + 8])


def kinds(stack: Stack, of: int) -> dict[str, tuple[str, Json]]:
    """Describe one stream of each kind that is resumed exactly."""
    messages = [{"role": "user", "content": f"Tell me something about the number {of}."}]
    chat = {"model": "demo", "messages": messages, "temperature": 0, **LONG, **USAGE}
    names = {"type": "array", "items": {"type": "string", "minLength": 8, "maxLength": 12}, "minItems": 32}
    schema = {"type": "object", "properties": {"names": {**names, "maxItems": 32}}, "required": ["names"]}
    tool = {"type": "function", "function": {"name": "remember", "parameters": schema}}
    named = {"type": "function", "function": {"name": "remember"}}
    stopped = completion(60, of=of, **LONG)
    return {
        "completion": (COMPLETIONS, completion(150, of=of + 1, **LONG, **USAGE)),
        "chat": (CHAT, chat),
        "stop": (COMPLETIONS, {**stopped, "stop": [late_text(stack, stopped), "never said"], **USAGE}),
        "tools-auto": (CHAT, {**chat, "tools": [tool], "tool_choice": "auto"}),
        "tool-named": (CHAT, {**chat, "tools": [tool], "tool_choice": named, "ignore_eos": False}),
        "grammar": (COMPLETIONS, completion(40, of=of + 2, max_tokens=300, structured_outputs={"json": schema})),
        "logprobs": (COMPLETIONS, completion(33, of=of + 3, logprobs=2, **LONG)),
        "chat-logprobs": (CHAT, {**chat, "logprobs": True, "top_logprobs": 2}),
        "seed": (COMPLETIONS, completion(70, of=of + 4, **LONG) | {"temperature": 1.0, "seed": 7, "top_p": 0.9}),
        "penalties": (COMPLETIONS, completion(50, of=of + 5, presence_penalty=1.0, frequency_penalty=0.3, **LONG)),
        "min-tokens": (COMPLETIONS, completion(50, of=of + 6, min_tokens=300, max_tokens=400, bad_words=["the"])),
        "token-ids": (COMPLETIONS, completion(50, of=of + 7, return_token_ids=True, **LONG)),
        "echo": (COMPLETIONS, completion(50, of=of + 8, echo=True, **LONG)),
    }


def run_through(
    stack: Stack, streams: dict[str, tuple[str, Json]], break_it: Callable[[], object], *, begin: Callable[[], object]
) -> dict[str, Reader]:
    """Begin streams, break something once all have come some way, and read them to their ends.

    `begin` is called first. When a stream ends before the last has come some way, for the router may hold one back, all
    of it is done again: nothing was broken yet.
    """
    for _ in range(MOST_TRIES):
        begin()
        readers = {name: Reader(stack.url, path, body) for name, (path, body) in streams.items()}
        with ThreadPoolExecutor(len(readers)) as pool:
            ends = []
            for names in ([n for n in readers if n not in SHORT], [n for n in readers if n in SHORT]):
                ends += [pool.submit(readers[name].read) for name in names]
                for name in names:
                    assert readers[name].is_going.wait(60), name
            ended = [name for name, reader in readers.items() if reader.streamed.done]
            if not ended:
                break_it()
            for end in ends:
                end.result(120)
        if not ended:
            return readers
    raise AssertionError(f"{ended} ended before the last stream had begun, {MOST_TRIES} times")


def assert_like_one_pool(stack: Stack, streams: dict[str, tuple[str, Json]], readers: dict[str, Reader]) -> None:
    for name, (path, body) in streams.items():
        ours, expected = readers[name].streamed, stream(stack.one_pool_url, path, body)
        assert ours.errors == [], name
        assert ours.done, name
        assert_same(ours.choices, expected.choices, name)
        assert ours.usage == expected.usage, name
        assert len(readers[name].ids) == 1, name


def test_streams_go_on_at_the_prefill_worker_when_decode_dies(stack: Stack) -> None:
    streams = kinds(stack, of=700)
    before: list[float] = []
    readers = run_through(
        stack,
        streams,
        lambda: stack.kill("decode-0"),
        begin=lambda: before.append(stack.router_metric("baton_streams_resumed_total", outcome="ok")),
    )
    assert_like_one_pool(stack, streams, readers)
    assert stack.router_metric("baton_streams_resumed_total", outcome="ok") - before[-1] == len(streams)


def test_streams_go_on_as_a_pair_or_away_from_a_frozen_worker(stack: Stack) -> None:
    stack.add_worker("decode-1", Role.DECODE)
    try:
        all_kinds = kinds(stack, of=800)
        chosen = ("completion", "chat", "stop", "tool-named", "grammar", "logprobs", "seed", "penalties")
        streams = {name: all_kinds[name] for name in chosen}
        handed_over: list[float] = []
        readers = run_through(
            stack,
            streams,
            lambda: stack.kill("decode-0"),
            begin=lambda: handed_over.append(stack.router_metric("baton_handover_total", outcome="ok")),
        )
        assert_like_one_pool(stack, streams, readers)
        assert stack.router_metric("baton_handover_total", outcome="ok") - handed_over[-1] > len(streams)

        streams = {name: streams[name] for name in ("completion", "chat", "seed")}
        readers = run_through(stack, streams, lambda: stack.signal("decode-1", signal.SIGSTOP), begin=lambda: None)
        assert_like_one_pool(stack, streams, readers)
        assert max(reader.longest_gap_s for reader in readers.values()) < NOTICED_S
        stack.signal("decode-1", signal.SIGCONT)
        stack.wait(lambda: stack.router_metric("baton_worker_up", worker="decode-1") == 1)
        stack.assert_nothing_held("decode-1")  # though its streams ended elsewhere

        def freeze_engine() -> None:
            stack.signal_engine("decode-1", signal.SIGSTOP)

        readers = run_through(stack, streams, freeze_engine, begin=lambda: None)
        assert_like_one_pool(stack, streams, readers)
        assert max(reader.longest_gap_s for reader in readers.values()) < NOTICED_S
        stack.wait(lambda: not stack.workers["decode-1"].tree_pids(), timeout_s=60)  # it does not wait for ever
    finally:
        stack.signal("decode-1", signal.SIGCONT)  # its engine core too
        stack.remove_worker("decode-1")
