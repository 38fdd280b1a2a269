"""Each parameter of the API meets through Baton what it meets at one vLLM engine; docs/api.md says what that is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
import pytest

from tests.support.api_parameters import (
    BASES,
    BY_ROUTE,
    CHAT_BASE,
    PROMPT,
    Becomes,
    Json,
    Parameter,
    with_tables,
)
from tests.support.doc_pages import ROOT
from tests.support.openai_http import assert_same, post, stream, strip
from tests.support.stack import Stack

T = TypeVar("T")
PAGE = ROOT / "docs" / "api.md"
CASES = [pytest.param(route, p, id=f"{route}:{p.name}") for route, ps in BY_ROUTE.items() for p in ps]
# Fields of vLLM's requests that say something of images, experts or caches that no model here has.
NOT_SHOWN = {
    *("media_io_kwargs", "mm_processor_kwargs", "mm_payload", "return_mm_kwargs", "routed_experts_prompt_start"),
    *("thinking_token_budget", "include_reasoning", "watermarking", "session_id", "repetition_detection"),
    *("logprob_token_ids", "return_token_offsets", "return_prompt_text", "prompt_embeds", "chat_template"),
}


def test_the_page_has_the_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_tables(text) == text, f"run: python -m tests.support.api_parameters {PAGE.relative_to(ROOT)}"
    assert all(f"`{name}`" in text for name in NOT_SHOWN)


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, as vLLM is imported
def test_no_field_of_vllm_is_left_out() -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    models: dict[str, Any] = {"/v1/chat/completions": ChatCompletionRequest, "/v1/completions": CompletionRequest}
    for route, model in models.items():
        told = {parameter.name for parameter in BY_ROUTE[route]}
        assert set(model.model_fields) - told - NOT_SHOWN == set(), f"of {route}"


@pytest.mark.engine
@pytest.mark.parametrize(("route", "parameter"), CASES)
def test_parameters_meet_what_the_page_says(stack: Stack, route: str, parameter: Parameter) -> None:
    # A beginning of its own: what is cached of another case would leave nothing to hand over.
    body = _apart(parameter.body(BASES[route]), f"{route} {parameter.name}. ")
    before = stack.landed()
    if body.get("stream"):
        _compare_streams(stack, route, body)
    else:
        _compare(stack, route, parameter, body)
    if parameter.becomes is Becomes.PAIR:
        assert stack.landed() > before, "it was not served by a pair"
    elif parameter.becomes in (Becomes.WHOLE, Becomes.REFUSED, Becomes.OURS):
        assert stack.landed() == before, "it used a hand-over"


@pytest.mark.engine
def test_models_are_those_of_one_pool(stack: Stack) -> None:
    ours, expected = _of_both(stack, lambda url: httpx.get(f"{url}/v1/models", timeout=30).json())
    assert [model["id"] for model in ours["data"]] == [model["id"] for model in expected["data"]]
    assert [model.keys() for model in ours["data"]] == [model.keys() for model in expected["data"]]


@pytest.mark.engine
def test_responses_and_messages_say_what_one_pool_says(stack: Stack) -> None:
    body = {"model": "demo", "input": PROMPT, "max_output_tokens": 8, "temperature": 0}
    ours, expected = _of_both(stack, lambda url: post(url, "/v1/responses", body))
    assert (ours[0], ours[1]["output"][0]["content"]) == (200, expected[1]["output"][0]["content"])
    said = {"model": "demo", "max_tokens": 8, "temperature": 0, "messages": CHAT_BASE["messages"]}
    ours, expected = _of_both(stack, lambda url: post(url, "/v1/messages", said))
    assert (ours[0], ours[1]["content"]) == (200, expected[1]["content"])


@pytest.mark.engine
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/audio/transcriptions", "/v1/batches", "/v1/files"])
def test_what_is_not_there_is_404(stack: Stack, path: str) -> None:
    status, answer = post(stack.url, path, {"model": "demo", "input": "x"})
    assert (status, answer.keys()) == (404, {"error"})


def _compare(stack: Stack, route: str, parameter: Parameter, body: Json) -> None:
    (status, ours), (expected_status, expected) = _of_both(stack, lambda url: post(url, route, body))
    if parameter.becomes is Becomes.OURS:
        assert (status, ours["error"]["type"], ours["error"]["param"]) == (400, "invalid_request_error", parameter.name)
        return
    if parameter.becomes is Becomes.REFUSED:
        assert (status, expected_status) == (400, 400)
        assert ours["error"]["message"] == expected["error"]["message"]
        return
    assert (status, expected_status) == (200, 200), ours
    assert_same(strip(ours), strip(expected))
    if parameter.becomes is Becomes.IGNORED:
        _, without = post(stack.url, route, {key: value for key, value in body.items() if key != parameter.name})
        assert_same(strip(without)["choices"], strip(ours)["choices"])


def _compare_streams(stack: Stack, route: str, body: Json) -> None:
    ours, expected = _of_both(stack, lambda url: stream(url, route, body))
    assert_same(ours.choices, expected.choices)
    assert (ours.usage, ours.errors, ours.done) == (expected.usage, [], True)


def _of_both(stack: Stack, ask: Callable[[str], T]) -> tuple[T, T]:
    with ThreadPoolExecutor(2) as pool:
        ours, expected = pool.map(ask, (stack.url, stack.one_pool_url))
    return ours, expected


def _apart(body: Json, words: str) -> Json:
    if isinstance(body.get("prompt"), str):
        return {**body, "prompt": words + body["prompt"]}
    if "messages" in body:
        first, *rest = body["messages"]
        return {**body, "messages": [{**first, "content": words + first["content"]}, *rest]}
    return body
