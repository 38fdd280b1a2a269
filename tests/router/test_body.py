"""What the router reads from bodies: everything that decides a route, nothing that it would get wrong.

Properties: any bytes give facts or InvalidRequest; a body that asks for what handed-over KV cannot serve is never
allowed to be split, in whatever company the field comes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidRequest, PayloadTooLarge
from router.body import MAX_PARTS, BodyFacts, chat_facts, completion_facts, no_facts, whole_facts

READERS = (completion_facts, chat_facts, whole_facts)


def completion(**fields: object) -> BodyFacts:
    return completion_facts(json.dumps({"model": "m", "prompt": "hi"} | fields).encode())


def chat(*parts: object, **fields: object) -> BodyFacts:
    messages = [{"role": "user", "content": list(parts) or "hi"}]
    return chat_facts(json.dumps({"model": "m", "messages": messages} | fields).encode())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"n": 1}, None),
        ({"n": None}, None),
        ({"best_of": 1}, None),
        ({"logprobs": 3}, None),
        ({"prompt_logprobs": None}, None),
        ({"echo": False}, None),
        ({"prompt": ["one"]}, None),
        ({"prompt": [[1, 2, 3]]}, None),
        ({"prompt": [1, 2, 3]}, None),
        ({"n": 2}, "n>1"),
        ({"best_of": 2}, "best_of>1"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"echo": True}, "echo"),
        ({"prompt": ["one", "two"]}, "several prompts"),
        ({"prompt": [[1], [2]]}, "several prompts"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
    ],
)
def test_completion_is_whole_only_for_a_reason(fields: dict[str, object], reason: str | None) -> None:
    assert completion(**fields).whole_only == reason


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "text", "text": "hi"}, None),
        ({"text": "hi"}, None),
        ({"type": "image_url", "image_url": {"url": "data:"}}, "multimodal content"),
        ({"type": "input_audio", "input_audio": {}}, "multimodal content"),
    ],
)
def test_chat_with_media_is_whole_only(part: dict[str, object], reason: str | None) -> None:
    assert chat(part).whole_only == reason
    assert chat({"type": "text", "text": "x"}, part).whole_only == reason


def test_chat_is_whole_only_for_a_reason() -> None:
    assert chat(echo=False).whole_only is None
    assert chat(echo=True).whole_only == "echo"
    assert chat(n=2).whole_only == "n>1"


def test_facts_of_a_stream() -> None:
    facts = completion(stream=True, max_tokens=7, stream_options={"include_usage": True})
    assert (facts.stream, facts.max_tokens, facts.include_usage) == (True, 7, True)
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6


def test_prompt_tokens_are_counted_or_estimated() -> None:
    assert completion(prompt=list(range(500))).prompt_tokens == 500
    assert 250 <= completion(prompt="x" * 1000).prompt_tokens <= 270
    assert no_facts(b"x" * 40).prompt_tokens == 10


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'"text"', None),
        (b"null", None),
        (b'{"prompt": NaN}', None),
        (b'\xff\xfe{"\x00', None),
        (b'{"prompt": "x", "kv_transfer_params": {}}', "kv_transfer_params"),
        (b'{"prompt": "x", "ec_transfer_params": {}}', "ec_transfer_params"),
        (b'{"prompt": "x", "vllm_xargs": {"kv_transfer_params": "x"}}', "vllm_xargs"),
    ],
)
def test_bad_completions_are_refused(body: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion_facts(body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [{"n": "2"}, {"n": 2.5}, {"best_of": []}, {"echo": 1}, {"use_beam_search": "yes"}, {"prompt_logprobs": "2"}],
    ids=str,
)
def test_odd_values_go_to_one_worker_whole(fields: dict[str, object]) -> None:
    assert completion(prompt="x", **fields).whole_only is not None


@pytest.mark.parametrize(
    "body", [b"{}", b'{"prompt": 3}', b'{"prompt": "x", "max_tokens": "many", "model": 5, "stream": "yes"}']
)
def test_validity_is_left_to_the_worker(body: bytes) -> None:
    assert completion_facts(body).max_tokens is None
    assert chat_facts(body).max_tokens is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
known_fields = st.sampled_from(
    (
        *("prompt", "messages", "n", "best_of", "echo", "stream", "stream_options", "max_tokens"),
        *("prompt_embeds", "vllm_xargs", "model"),
    )
)


def read_or_refuse(read: Callable[[bytes], BodyFacts], body: bytes) -> BodyFacts | None:
    with contextlib.suppress(InvalidRequest):
        return read(body)
    return None


@given(st.binary(max_size=40) | st.dictionaries(known_fields, json_values).map(lambda d: json.dumps(d).encode()))
def test_any_bytes_give_facts_or_a_refusal(body: bytes) -> None:
    for read in READERS:
        facts = read_or_refuse(read, body)
        assert facts is None or facts.prompt_tokens >= 0


unsplittable = st.sampled_from(
    [{"n": 2}, {"best_of": 4}, {"use_beam_search": True}, {"prompt_logprobs": 0}, {"prompt_logprobs": 5}]
)


@given(st.dictionaries(known_fields, json_values), unsplittable)
def test_no_company_makes_an_unsplittable_request_splittable(company: dict[str, object], field: dict[str, int]) -> None:
    body = json.dumps(company | field).encode()
    for read in READERS:
        facts = read_or_refuse(read, body)
        assert facts is None or facts.whole_only is not None


def test_priority_is_read_on_every_generating_route() -> None:
    assert [completion(priority=-3).priority, chat(priority=7).priority] == [-3, 7]
    assert whole_facts(b'{"input": "a", "priority": 2}').priority == 2
    assert completion().priority == 0
    for reader in READERS:
        with pytest.raises(InvalidRequest, match="priority must be a whole number"):
            reader(b'{"prompt": "a", "priority": "high"}')


@pytest.mark.parametrize("part", ["[]", "{}", '{"a": 1}'])
def test_a_body_of_countless_parts_is_not_parsed(part: str) -> None:
    body = ('{"prompt": "a", "x": [' + ",".join([part] * (MAX_PARTS + 1)) + "]}").encode()
    for reader in READERS:
        with pytest.raises(PayloadTooLarge, match="more than 262144 lists, objects and keys"):
            reader(body)


def test_long_text_and_long_lists_of_token_ids_are_parsed() -> None:
    assert completion(prompt="the sea, " * 1_000_000).prompt_tokens > 1_000_000
    assert completion(prompt=[1] * 1_000_000).prompt_tokens == 1_000_000
