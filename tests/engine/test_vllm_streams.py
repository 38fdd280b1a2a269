"""Streams that are made again by a real engine: whatever was sent of them, the same events come, and the same rest."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from cluster.codec import SubmitEncoder, tokens_from_pb
from cluster.reply import Headers, OpenCall
from core.engine import RESUMED_TOKENS, HttpCall, Resume
from core.errors import BatonError, ResumeFailed
from core.types import Leg
from router.transcript import without_logprobs
from tests.engine.conftest import JSON, RunningEngine
from tests.support.openai_http import Streamed, assert_same, take

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

WAIT_S = 60.0
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"names": {"type": "array", "items": {"type": "string", "maxLength": 6},
          "minItems": 3, "maxItems": 4}}, "required": ["names"]}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "remember", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "remember"}}
LONG = {"max_tokens": 40, "ignore_eos": True, "temperature": 0}
ASK = {"messages": [{"role": "user", "content": "Say something."}], **LONG}
USAGE = {"stream_options": {"include_usage": True}}
ENDS = re.compile(rb'"finish_reason":"')
STEADY_USAGE = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
FORCED = {**ASK, "max_tokens": 120, "tools": [TOOL], "ignore_eos": False}
EVEN = list(range(0, 2000, 2))
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": (COMPLETIONS, {**LONG, **USAGE}),
    "continuous-usage": (COMPLETIONS, {**LONG, **STEADY_USAGE}),
    "chat": (CHAT, {**ASK, **USAGE}),
    "tools-auto": (CHAT, {**ASK, "tools": [TOOL], "tool_choice": "auto"}),
    "tools-required": (CHAT, {**FORCED, "tool_choice": "required"}),
    "tools-named": (CHAT, {**FORCED, "tool_choice": NAMED}),
    "grammar": (COMPLETIONS, {**LONG, "max_tokens": 120, "ignore_eos": False, "structured_outputs": {"json": SCHEMA}}),
    "logprobs": (COMPLETIONS, {**LONG, "logprobs": 2}),
    "chat-logprobs": (CHAT, {**ASK, "logprobs": True, "top_logprobs": 2}),
    "seed": (COMPLETIONS, {**LONG, "temperature": 1.0, "seed": 7}),
    "seed-top-k": (COMPLETIONS, {**LONG, "temperature": 0.8, "seed": 8, "top_k": 50, "top_p": 0.9, "min_p": 0.001}),
    "penalties": (COMPLETIONS, {**LONG, "presence_penalty": 1.2, "frequency_penalty": 0.6, "repetition_penalty": 1.1}),
    "min-tokens": (COMPLETIONS, {**LONG, "ignore_eos": False, "min_tokens": 35, "stop_token_ids": EVEN}),
    "token-ids": (COMPLETIONS, {**LONG, "return_token_ids": True}),
    "echo": (COMPLETIONS, {**LONG, "echo": True}),
    "stop": (COMPLETIONS, {**LONG, "stop": ["never said", "nor this"]}),
    "special-tokens": (COMPLETIONS, {**LONG, "skip_special_tokens": False, "spaces_between_special_tokens": False}),
    "adapter": (COMPLETIONS, {**LONG, "model": "poet"}),
    "one-token": (COMPLETIONS, {**LONG, "max_tokens": 1}),
    "stream-interval": (COMPLETIONS, {**LONG, "stream_interval": 4}),
}  # fmt: skip


@dataclass(slots=True)
class Told:
    """One message of a stream: the tokens told before it, and its bytes."""

    groups: list[list[int]]
    data: bytes


class Listener(OpenCall):
    """Keeps a stream as it comes."""

    __slots__ = ("done", "groups", "messages", "status")

    def __init__(self) -> None:
        super().__init__()
        self.status = 0
        self.groups: list[list[int]] = []
        self.messages: list[Told] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def add_head(self, status: int, headers: Headers) -> None:
        self.status = status

    def add_tokens(self, token_ids: bytes, group_sizes: Sequence[int]) -> None:
        self.groups += Resume(tokens_from_pb(token_ids), list(group_sizes)).groups()

    def add_body(self, data: bytes) -> None:
        self.messages.append(Told(self.groups, data))
        self.groups = []

    def end(self, error: BatonError | None) -> None:
        self.ended = True
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    @property
    def data(self) -> bytes:
        return b"".join(message.data for message in self.messages)


async def listen(engine: RunningEngine, call: HttpCall) -> Listener:
    listener = Listener()
    engine.session.send(listener, Leg.WHOLE, SubmitEncoder(call, None))
    async with asyncio.timeout(WAIT_S):
        await listener.done
    return listener


def call_of(path: str, body: dict[str, Any]) -> HttpCall:
    fields = {"model": "tiny", "stream": True, **({} if path == CHAT else {"prompt": [5, 6, 7, 8] * 10}), **body}
    return HttpCall("the-one", "POST", path, JSON, json.dumps(fields).encode(), nonce="n" * 16)


def order_after(first: Listener, num_messages: int, created: int) -> Resume:
    groups = [group for message in first.messages[:num_messages] for group in message.groups]
    return Resume(tokens_told(first.messages[:num_messages]), [len(group) for group in groups], created)


def comparable(data: bytes, path_has_logprobs: bool) -> list[bytes]:
    events = [event + b"\n\n" for event in data.split(b"\n\n") if event]
    return [without_logprobs(event) for event in events] if path_has_logprobs else events


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_made_again_and_what_follows_is_the_same(running: RunningEngine, kind: str) -> None:
    path, body = KINDS[kind]
    call = call_of(path, body)
    first = await listen(running, call)
    assert first.status == 200, first.data
    assert first.data.endswith(b"data: [DONE]\n\n"), first.data
    assert b'"error"' not in first.data, first.data
    num_messages = len(first.messages)
    cuts = sorted({1, num_messages // 4, num_messages // 2, num_messages - 1, num_messages} - {0})
    has_logprobs = bool(body.get("logprobs"))
    for cut in cuts:
        created = int(first.data.split(b'"created":')[1].split(b",")[0])
        again = await listen(running, replace(call, resume=order_after(first, cut, created)))
        # Which tokens come with the end of a stream, and are not told, is chance on a busy machine.
        before_end = itertools.takewhile(lambda message: not ENDS.search(message.data), first.messages[:cut])
        sent = comparable(b"".join(message.data for message in before_end), has_logprobs)
        assert comparable(again.data, has_logprobs)[: len(sent)] == sent, cut
        assert_same(gathered(again), gathered(first), f"after {cut}")  # whose events may hold other numbers of tokens
        told, told_first = tokens_told(again.messages), tokens_told(first.messages[cut:])
        both = min(len(told), len(told_first))
        assert told[:both] == told_first[:both]


def tokens_told(messages: Sequence[Told]) -> list[int]:
    return [token for message in messages for group in message.groups for token in group]


def gathered(stream: Listener) -> list[Any]:
    """Join the events of a stream; log probabilities of what was made again are not known, so only the last is kept."""
    streamed = Streamed()
    for line in stream.data.decode().split("\n\n"):
        if line:
            take(streamed, line.removeprefix("data: "))
    for choice in streamed.choices.values():
        if logprobs := choice.get("logprobs"):
            for name, values in logprobs.items():
                logprobs[name] = values[-1:] if isinstance(values, list) else values
    return [streamed.choices, streamed.usage, streamed.errors, streamed.done]


async def test_groups_of_several_tokens_are_rendered_together(running: RunningEngine) -> None:
    call = call_of(COMPLETIONS, {**LONG, "return_token_ids": True})
    first = await listen(running, call)
    tokens = tokens_told(first.messages)
    again = await listen(running, replace(call, resume=Resume(tokens[:9], [2, 3, 4])))
    ids = [
        e["choices"][0]["token_ids"]
        for e in map(json.loads, again.data.decode().replace("data: ", "").split("\n\n")[:-2])
        if e["choices"]
    ]
    assert ids[:3] == [tokens[:2], tokens[2:5], tokens[5:9]]
    assert [token for group in ids for token in group][: len(tokens)] == tokens


@pytest.mark.parametrize(
    ("body", "order", "why"),
    [
        ({"echo": True, "logprobs": 1}, Resume([5], []), "log probabilities of the prompt"),
        ({}, Resume([10**6], []), "tokens that the model does not have"),
        ({"max_tokens": 2}, Resume([5, 6, 7], []), "more tokens than may be made"),
        ({"n": 2, "temperature": 1.0}, Resume([5], []), "n > 1"),
    ],
)
async def test_what_cannot_be_resumed_is_refused(
    running: RunningEngine, body: dict[str, Any], order: Resume, why: str
) -> None:
    call = replace(call_of(COMPLETIONS, {**LONG, **body}), resume=order)
    with pytest.raises(ResumeFailed, match=why):
        await listen(running, call)
    assert (await listen(running, call_of(COMPLETIONS, LONG))).status == 200  # nobody else suffers


async def test_a_client_cannot_resume_by_itself(running: RunningEngine) -> None:
    """The engine core takes tokens from the extra arguments of a request, which clients can set too."""
    plain = await listen(running, call_of(COMPLETIONS, LONG))
    forged = await listen(running, call_of(COMPLETIONS, {**LONG, "vllm_xargs": {RESUMED_TOKENS: [10**9]}}))
    assert forged.status in (200, 400)
    if forged.status == 200:
        assert text_of(forged) == text_of(plain)


def text_of(stream: Listener) -> str:
    events = [json.loads(e[6:]) for e in stream.data.decode().split("\n\n") if e.startswith("data: {")]
    return "".join(e["choices"][0]["text"] for e in events if e["choices"])
